# nginx with two workers of another user, and a client that keeps one connection for ever, always in
# the middle of a request: the file /go-N lets it finish the N-th.
mkdir -p /www
echo "served" >/www/page
chmod -R a+rX /www
nginx -c /programs/nginx.conf &
until exec 3<>/dev/tcp/127.0.0.1/8080; do sleep 0.05; done 2>/dev/null
n=0
while :; do
    n=$((n + 1))
    printf 'GET /page?%s HTTP/1.1\r\nHost: localhost\r\n' $n >&3
    echo "asking $n"
    until [ -e /go-$n ]; do sleep 0.02; done
    printf '\r\n' >&3
    read -r status <&3
    while read -r line <&3 && [ "$line" != $'\r' ]; do :; done
    read -r body <&3
    echo "answer $n: ${status%$'\r'}: $body"
done
