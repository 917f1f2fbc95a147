# A redis server, and one client that is blocked in BLPOP on one connection for ever.
redis-server --bind 127.0.0.1 --save '' --appendonly no --dir /tmp --daemonize no \
    --enable-debug-command yes --timeout 0 --tcp-keepalive 0 >/redis.log &
until redis-cli ping >/dev/null 2>&1; do sleep 0.05; done
redis-cli eval "
    for i = 1, 100000 do redis.call('set', 'key:' .. i, 'value ' .. i * 7) end
    for i = 1, 50000 do redis.call('hset', 'hash:' .. i, 'a', i, 'b', i * i) end
    for i = 1, 25000 do redis.call('rpush', 'list:' .. i, i, i + 1, i + 2) end
    for i = 1, 25000 do redis.call('zadd', 'set:' .. i, i, 'one', i + 1, 'two') end
    return redis.call('dbsize')" 0
yes 'BLPOP queue 0' | redis-cli --no-raw >/popped
echo "the blocked client ended"
