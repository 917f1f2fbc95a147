# Counts aloud; every number forks a process.
n=0
while :; do
    n=$((n + 1))
    echo "Hello $n"
    sleep 0.03
done
