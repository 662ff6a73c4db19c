# The options of the agent's modules, the same on NixOS and on nix-darwin.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.muster-agent;
  toml = pkgs.formats.toml { };
in
{
  options.services.muster-agent = {
    enable = lib.mkEnableOption "Muster's agent, which keeps this machine on the system that its operators signed";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package with `bin/muster-agent`; `packages.SYSTEM.muster-agent` of Muster's flake.";
    };

    settings = lib.mkOption {
      type = lib.types.submodule {
        freeformType = toml.type;
        options.state_dir = lib.mkOption {
          type = lib.types.str;
          default = "/var/lib/muster";
          description = "Where the agent keeps its keys, what it has verified, and what it has not told yet.";
        };
        options.poll_seconds = lib.mkOption {
          type = lib.types.ints.between 1 600;
          default = 55;
          description = "How long one poll waits at the controller, in seconds.";
        };
      };
      default = { };
      description = "The contents of `agent.toml`.";
    };

    configFile = lib.mkOption {
      type = lib.types.path;
      internal = true;
      readOnly = true;
      description = "The finished `agent.toml`. Its path is in the service, so that a changed setting is a changed service.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.muster-agent.configFile = toml.generate "agent.toml" cfg.settings;
    # For `muster-agent status` and the other commands, which look there.
    environment.etc."muster/agent.toml".source = cfg.configFile;
    environment.systemPackages = [ cfg.package ];
  };
}
