# The daemon on NixOS: nixpkgs' own module runs it; the identity and the networks come from us.
{
  lib,
  config,
  pkgs,
  ...
}:
let
  cfg = config.muster.zerotier;
  # nixpkgs leaves the controller out by default, because that part has a licence of its own.
  withController =
    if lib.functionArgs pkgs.zerotierone.override ? enableUnfree then
      pkgs.zerotierone.override { enableUnfree = true; }
    else
      pkgs.zerotierone;
  plan = import ./plan.nix { inherit lib pkgs cfg; };
in
{
  imports = [ ./options.nix ];

  config = {
    services.zerotierone = {
      enable = true;
      package = lib.mkIf cfg.controller (lib.mkDefault withController);
      inherit (cfg) port localConf;
      joinNetworks = lib.attrNames cfg.networks;
    };
    systemd.services.zerotierone = {
      # The identity must exist before the daemon would generate its own.
      serviceConfig.ExecStartPre = [
        (lib.escapeShellArgs (
          [
            pkgs.runtimeShell
            "${./zerotier.sh}"
            "prepare"
          ]
          ++ plan.arguments "/var/lib/zerotier-one"
        ))
      ];
      restartTriggers = lib.optional (cfg.fingerprint != null) cfg.fingerprint;
    };
  };
}
