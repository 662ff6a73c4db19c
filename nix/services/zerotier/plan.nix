# The arguments of zerotier.sh on both classes.
{
  lib,
  pkgs,
  cfg,
}:
let
  line =
    id: permissions:
    lib.concatStringsSep " " (
      [ id ] ++ lib.mapAttrsToList (name: may: "${name}=${if may then "1" else "0"}") permissions
    );
in
rec {
  text = lib.concatMapStrings (network: network + "\n") (lib.mapAttrsToList line cfg.networks);
  arguments = home: [
    home
    cfg.identity
    "${pkgs.writeText "zerotier-networks" text}"
  ];
}
