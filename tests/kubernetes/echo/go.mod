module signal-echo

go 1.24
