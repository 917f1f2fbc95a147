# Five processes and four pipes; the sum tells whether a single byte was lost or came twice.
seq 1 2000000 | xz -6 -T1 | tee /copy.xz | xz -d | sha256sum >/draft
mv /draft /sum
exec sleep 1000000
