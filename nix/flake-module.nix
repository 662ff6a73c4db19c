# For flake-parts: the arguments of `lib.mkFleet` as options, or, for a flake with configurations of its own,
# what Muster should know about its machines.
{ mkFleet }:
{
  self,
  inputs,
  lib,
  config,
  ...
}:
let
  cfg = config.muster;
in
{
  # Imported twice, by two modules of one flake, it still counts once.
  key = "muster#flakeModules.default";
  _file = "muster#flakeModules.default";

  options.muster = {
    fleet = lib.mkOption {
      type = lib.types.nullOr (lib.types.lazyAttrsOf lib.types.raw);
      default = null;
      example = lib.literalExpression "{ inventory = ./inventory.nix; }";
      description = ''
        The arguments of Muster's `lib.mkFleet`, but `self`: it makes `nixosConfigurations`, `darwinConfigurations` and `muster`
        of one inventory.
      '';
    };
    machines = lib.mkOption {
      type = lib.types.lazyAttrsOf lib.types.raw;
      default = { };
      example = lib.literalExpression ''{ server.checks.ssh.tcp = "127.0.0.1:22"; }'';
      description = ''
        Without `fleet`: health checks, deadlines and policies of the machines in this flake's own `nixosConfigurations` and
        `darwinConfigurations`.
      '';
    };
    rollouts = lib.mkOption {
      type = lib.types.lazyAttrsOf lib.types.raw;
      default = { };
      example = lib.literalExpression ''{ weekly.waves = [ { name = "canaries"; tags = [ "canary" ]; } ]; }'';
      description = ''
        Without `fleet`: in which waves machines take an update; docs/rollouts.md explains the settings.
      '';
    };
  };

  config.flake =
    if cfg.fleet != null && cfg.rollouts != { } then
      throw "muster.rollouts is for flakes without muster.fleet: write rollouts.NAME into the inventory"
    else if cfg.fleet != null && cfg.machines != { } then
      throw "muster.machines is for flakes without muster.fleet: write machines.NAME.muster into the inventory"
    else if cfg.fleet != null then
      mkFleet ({ inherit self inputs; } // cfg.fleet)
    else
      {
        muster = {
          inherit (cfg) machines;
        }
        // lib.optionalAttrs (cfg.rollouts != { }) { inherit (cfg) rollouts; };
      };
}
