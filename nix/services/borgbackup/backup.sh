#!/bin/sh
# One backup: backup.sh REPOSITORY KEY-FILE FOLDERS EXCLUDE [--keep-RULE=N …]
# FOLDERS and EXCLUDE are files with one entry on each line. BORG_RSH says how the repository is reached.
set -eu

repository=$1 key=$2 folders=$3 exclude=$4
shift 4

say() { printf '%s\n' "$(date '+%Y-%m-%d %H:%M:%S') borgbackup: $*" >&2; }
die() {
  say "$*"
  exit 1
}

[ -s "$key" ] || die "$key is not there. Generate this machine's variables, and see that it can decrypt them."
export BORG_REPO="$repository" BORG_PASSCOMMAND="cat $key"
# A server may be reached under another address than before; an unknown repository must not be taken for ours.
export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=no BORG_EXIT_CODES=modern

status=0
borg info > /dev/null 2>&1 || status=$?
if [ "$status" != 0 ]; then
  # Whatever else is wrong, init refuses what is there and says why.
  say "making the repository"
  borg init --encryption repokey || die "the repository cannot be reached or made."
fi

# The folders as the arguments of one call, whatever is in their names.
keep=$*
set --
while IFS= read -r folder; do
  [ -z "$folder" ] || set -- "$@" "$folder"
done < "$folders"

# Archives carry the machine's name, so that several machines could share a repository.
host=$(hostname -s)
say "backing up"
status=0
borg create --compression auto,zstd --exclude-caches --exclude-from "$exclude" --stats \
  "::$host-{now:%Y-%m-%dT%H:%M:%S}" "$@" || status=$?
case $status in
  0) ;;
  # A file that changed or could not be read: the archive is made, and the log says which.
  1 | 1[0-9][0-9]) say "made, with warnings (exit code $status). On a Mac, macOS keeps protected folders from it: the archive is without them." ;;
  *) die "borg create failed with exit code $status." ;;
esac

if [ -n "$keep" ]; then
  # shellcheck disable=SC2086 # These are words of ours without spaces.
  borg prune --glob-archives "$host-*" $keep || die "pruning failed."
  borg compact || die "compacting failed."
fi
say "done"
