// An HTTP server with a counter: `/` counts and answers through a second request, which the server
// makes to itself over a connection that it keeps for ever.
const http = require('http');

const agent = new http.Agent({ keepAlive: true, maxSockets: 1, keepAliveMsecs: 600000 });
const heap = Array.from({ length: 50000 }, (_, i) => ({ name: `object ${i}`, i }));
let count = 0;
let ticks = 0;
setInterval(() => { ticks += 1; }, 10);

const server = http.createServer((request, response) => {
  if (request.url !== '/') {
    response.end(String(Number(request.url.slice(1)) + 1));
    return;
  }
  const inner = http.get({ port: 8080, host: '127.0.0.1', path: `/${count}`, agent }, (answer) => {
    const port = answer.socket.localPort;
    let text = '';
    answer.on('data', (data) => { text += data; });
    answer.on('end', () => {
      count = Number(text);
      const sum = heap.reduce((total, entry) => total + entry.i, 0);
      response.end(JSON.stringify({ count, ticks, port, sum, pid: process.pid }));
    });
  });
  inner.on('error', (error) => response.end(JSON.stringify({ error: String(error) })));
});
server.keepAliveTimeout = 600000;
server.requestTimeout = 0;
server.listen(8080, '127.0.0.1', () => console.log('ready'));
