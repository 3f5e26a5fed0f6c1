#!/bin/sh
# Every change of an order, a line of JSON each, with nothing but curl: sh examples/follow.sh [gateway] [since]
# After a break, go on from a line's "position": give it as since.
curl --silent --show-error --no-buffer --get "${1:-http://127.0.0.1:8080}/sse" --data-urlencode 'subject=pg.shop.change.public.orders.>' \
  --data-urlencode "since=${2:-now}" | grep --line-buffered '"op":"event"'
