#!/usr/bin/env bash
# The README's commands on a bare Debian 12: a minimal chroot with a fresh clone of the committed tree.
#   tests/bare.sh [--user] [--keep] [COMMAND...]      default commands: demo test
# --user: as a user with sudo, not as root. --keep: leaves the chroot, and says where. Needs root, debootstrap, 15 GB under /var/tmp.
set -euo pipefail

[[ $EUID -eq 0 ]] || { echo "tests/bare.sh: a chroot needs root" >&2; exit 2; }
# In a mount namespace of its own, so that nothing stays mounted whatever happens.
[[ ${TROUPE_BARE_UNSHARED-} ]] || exec env TROUPE_BARE_UNSHARED=1 unshare --mount "$0" "$@"

source_dir=$(dirname "$(dirname "$(readlink -f "$0")")")
as_user=false keep=false
while [[ ${1-} == --* ]]; do
  case $1 in
    --user) as_user=true ;;
    --keep) keep=true ;;
    *) echo "tests/bare.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
[[ $# -gt 0 ]] || set -- demo test

root=$(mktemp -d /var/tmp/troupe-bare.XXXXXX)
chmod 755 "$root"
clean_up() {
  umount "$root/proc" "$root/dev/shm" "$root/dev/pts" "$root/dev" 2>/dev/null || true
  if $keep; then echo "kept $root"; else rm -rf --one-file-system "$root"; fi
}
trap clean_up EXIT

timed() {
  local start=$SECONDS status=0
  "$@" || status=$?
  printf '== %4d s, exit %d: %s\n' $((SECONDS - start)) "$status" "${*: -1}"
  return "$status"
}

# The machine's own mirror, name service, certificates and pip configuration: what a bare machine on this network would have.
# shellcheck disable=SC2016 # the braces are apt's, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' | head -n 1)
timed debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
rm -f "$root.log"
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /usr/local/share/ca-certificates; do
  [[ ! -e $file ]] || { mkdir -p "$root$(dirname "$file")"; cp -rL "$file" "$root$(dirname "$file")/"; }
done
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t devpts devpts "$root/dev/pts" 2>/dev/null || true
mount -t tmpfs tmpfs "$root/dev/shm"

home=/root account=root
if $as_user; then
  home=/home/dev account=dev
  chroot "$root" apt-get -qq update
  chroot "$root" apt-get -qq -y --no-install-recommends install sudo >/dev/null
  chroot "$root" useradd --create-home --shell /bin/bash dev
  echo 'dev ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/dev"
fi
git clone --quiet --no-local "$source_dir" "$root$home/troupe"
chroot "$root" chown -R "$account" "$home/troupe"

mapfile -t pip_settings < <(env | grep '^PIP_' || true)
status=0
for command in "$@"; do
  timed chroot --userspec="$account" "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$home" LANG=C.UTF-8 "${pip_settings[@]}" \
    bash -c "$home/troupe/dev $command" || status=1
done
[[ $status -eq 0 ]]
