#!/bin/sh
# The one list of what an image of Signal contains:
#
#   deploy/rootfs.sh BINARY FOLDER [LIBRARY-FOLDER...]
#
# fills FOLDER with BINARY as /usr/bin/NAME, the loader and the shared libraries it needs, the certificate authorities, the users root and
# nonroot (65532), and an empty /tmp: no shell, no package manager, nothing else. The Dockerfile makes its images of it. It reads the ELF
# headers rather than running ldd, so that it works for a foreign architecture too.
set -eu

binary=$1
root=$2
shift 2
machine=$(readelf -h "$binary" | sed -n 's/^ *Machine: *//p')
case "$machine" in
*X86-64) triple=x86_64-linux-gnu ;;
AArch64) triple=aarch64-linux-gnu ;;
*) echo "rootfs: no libraries are known for $machine" >&2; exit 1 ;;
esac
# Debian's places, the distribution's own before those of a cross compiler.
folders="$* /lib/$triple /usr/lib/$triple /usr/$triple/lib"

# The file of a library, with links followed.
find_library() {
    for folder in $folders; do
        if [ -e "$folder/$1" ]; then readlink -f "$folder/$1"; return; fi
    done
    echo "rootfs: $1 is in none of $folders" >&2
    return 1
}

install_library() {
    [ ! -e "$root/lib/$triple/$1" ] || return 0
    file=$(find_library "$1")
    install -D -m 755 "$file" "$root/lib/$triple/$1"
    libraries_of "$file"
}

libraries_of() {
    for name in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p'); do
        install_library "$name"
    done
}

install -d -m 755 "$root" "$root/dev" "$root/etc" "$root/proc" "$root/sys"
install -d -m 1777 "$root/tmp"
install -D -m 755 "$binary" "$root/usr/bin/$(basename "$binary")"
# Where the kernel looks for the loader; the same file again under its library name, where another library needs that.
loader=$(readelf -l "$binary" | sed -n 's/.*\[Requesting program interpreter: \(.*\)\]$/\1/p')
if [ -n "$loader" ]; then
    install -D -m 755 "$(find_library "$(basename "$loader")")" "$root$loader"
fi
libraries_of "$binary"

install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# Where Debian's OpenSSL looks for authorities when it is told of none, as librdkafka does.
install -d -m 755 "$root/usr/lib/ssl"
ln -sf /etc/ssl/certs/ca-certificates.crt "$root/usr/lib/ssl/cert.pem"
printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >"$root/etc/group"
chmod 644 "$root/etc/passwd" "$root/etc/group"
