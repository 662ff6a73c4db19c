# A public value of a machine, or of the whole fleet (`machine = null`), without trailing white space; null
# where it was not generated. Clan's layout, in the flake's source.
{ lib, directory }:
{
  machine ? null,
  generator,
  file,
}:
let
  folder = if machine == null then "shared" else "per-machine/${machine}";
  path = "${toString directory}/vars/${folder}/${generator}/${file}/value";
in
if builtins.pathExists path then
  lib.removeSuffix " " (lib.removeSuffix "\n" (builtins.readFile path))
else
  null
