# What the scripts share. A line `CHECK name ok`, or `CHECK name FAIL: why` unless the value is `yes`.
check() { # name, value, why
    if [ "$2" = yes ]; then echo "CHECK $1 ok"; else echo "CHECK $1 FAIL: $3"; fi
}
