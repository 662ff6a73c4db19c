# The interface on a Mac. nix-darwin writes wg-quick's configuration; its daemon is not used, because
# `wg-quick up` refuses an interface that already exists, so a changed peer would change nothing. Ours takes
# the interface down first.
{
  fleet,
  instanceName,
  settings,
  self,
  keyFile,
  lib,
  config,
  pkgs,
  fingerprint,
  ...
}:
let
  launchd = import ../common/launchd.nix { inherit lib; };
in
{
  networking.wg-quick.interfaces.${instanceName} = {
    autostart = false;
    address = [ "${fleet.address self}/64" ];
    inherit (settings) mtu;
    privateKeyFile = keyFile;
    peers = map (peer: removeAttrs peer [ "name" ]) (fleet.links self);
  };
  launchd.daemons."wireguard-${instanceName}".serviceConfig = launchd.daemon {
    name = "wireguard-${instanceName}";
    path = [
      pkgs.wireguard-tools
      pkgs.wireguard-go
    ];
    program = [
      "/bin/sh"
      "${./interface.sh}"
      instanceName
      keyFile
    ];
    configuration = {
      inherit fingerprint;
      text = config.environment.etc."wireguard/${instanceName}.conf".text;
    };
  };
}
