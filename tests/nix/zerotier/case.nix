# zerotier: a controller and peers of both classes, from the variables alone.
# needs: clan-core sops-nix
t:
let
  fleet = t.service {
    name = "zerotier";
    instance = "zt";
    roles = {
      controller.machines.cinnabar.settings = {
        domain = "zt.internal";
        allowedNodes = [ "deadbeef01" ];
      };
      peer.tags = [ "laptops" ];
    };
  };
in
{
  expect."stibnite.plist" = t.plist fleet.ours.stibnite "org.nixos.zerotierone";
}
