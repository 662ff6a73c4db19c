# What the controller says about the network and its members.
{
  lib,
  instanceName,
  settings,
  roles,
  machine,
}:
{
  config,
  options,
  pkgs,
  ...
}:
let
  vars = import ../common/vars.nix {
    inherit lib config options;
    class = "nixos";
  };
  fleet = import ./fleet.nix {
    inherit
      lib
      vars
      instanceName
      roles
      ;
    machine = machine.name;
  };
  generators = import ./generators.nix {
    inherit pkgs;
    package = pkgs.zerotierone;
    machine = machine.name;
    unit = "zerotierone.service";
  };
  network = {
    name = instanceName;
    private = !settings.public;
    v6AssignMode = {
      rfc4193 = lib.elem "rfc4193" settings.addressing;
      "6plane" = lib.elem "6plane" settings.addressing;
      zt = false;
    };
    v4AssignMode.zt = false;
  }
  // settings.network;
  members = lib.unique (map (known: known.node) (lib.attrValues fleet.known) ++ settings.allowedNodes);
in
{
  config = lib.mkMerge [
    (vars.declare (generators.network instanceName))
    {
      muster.zerotier.controller = true;
      systemd.services."zerotier-controller-${instanceName}" = lib.mkIf (fleet.network != null) {
        description = "ZeroTier network ${instanceName} and its members";
        wantedBy = [ "multi-user.target" ];
        after = [ "zerotierone.service" ];
        # A daemon that restarts may have lost its configuration.
        partOf = [ "zerotierone.service" ];
        requires = [ "zerotierone.service" ];
        path = [
          pkgs.coreutils
          pkgs.curl
          pkgs.gnugrep
        ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = lib.escapeShellArgs [
            pkgs.runtimeShell
            "${./controller.sh}"
            "/var/lib/zerotier-one"
            (toString config.muster.zerotier.port)
            fleet.network
            "${pkgs.writeText "zerotier-network-${instanceName}.json" (builtins.toJSON network)}"
            "${pkgs.writeText "zerotier-members-${instanceName}" (
              lib.concatMapStrings (node: node + "\n") members
            )}"
          ];
          # It gives up after two minutes without the daemon's API.
          TimeoutStartSec = 300;
          Restart = "on-failure";
          RestartSec = 30;
        };
      };
    }
  ];
}
