# A tmux server with a shell in a terminal.
tmux -S /tmux.sock -f /dev/null new-session -d -s main -x 100 -y 30 'exec bash --norc --noprofile'
echo ready
exec sleep 1000000
