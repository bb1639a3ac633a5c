#!/bin/sh
# No wide instruction outside its translation unit: usage check_objects.sh libprunefast_core.a
# A function that a wide translation unit shares (a weak symbol) could be the copy the linker keeps for every processor.
set -eu
archive=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
ar x "$archive"
status=0
complain() { echo "$1"; status=1; }
for object in *.o; do
  code=$(objdump -d --no-show-raw-insn "$object")
  case $object in
    avx512*) ;;
    avx2*) if echo "$code" | grep -q '%zmm'; then complain "$object holds 512-bit instructions"; fi ;;
    *) if echo "$code" | grep -Eq '[[:space:]]v[a-z0-9]+[[:space:]].*%[xyz]mm'; then complain "$object holds AVX instructions"; fi ;;
  esac
  case $object in
    avx*|baseline*)
      shared=$(nm --defined-only "$object" | grep -E ' [VWuTBD] ' | grep -Ev 'kernels_|screenings_' || true)
      if [ -n "$shared" ]; then complain "$object shares symbols: $shared"; fi
      if nm "$object" | grep -Eq '_GLOBAL__sub_I'; then complain "$object runs an initialiser before dispatch"; fi ;;
  esac
done
wide=$(objdump -d --no-show-raw-insn avx512*.o 2>/dev/null | grep -c '%zmm' || true)
if [ -f avx512.cpp.o ] && [ "$wide" -eq 0 ]; then complain "avx512.cpp.o holds no 512-bit instruction: the check is blind"; fi
exit $status
