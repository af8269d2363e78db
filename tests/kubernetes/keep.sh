#!/bin/bash
# keep.sh RUN: waits for the other end of its standard input to go, with a word or with the process that held it, however it died;
# then takes the cluster down. The word `leave` leaves it running.
read -r word
[ "${word:-}" = leave ] && exit
[ -s "$1/settings" ] || exit 0
exec "$(dirname "${BASH_SOURCE[0]}")/down.sh" "$1"
