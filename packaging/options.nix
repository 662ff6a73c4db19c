# The options of the agent, the same for NixOS and nix-darwin, and the file that they become.
{ lib, config, pkgs, ... }:
let
  cfg = config.services.muster-agent;
in
{
  options.services.muster-agent = {
    enable = lib.mkEnableOption "the Muster agent, which keeps this machine on the system that its operators signed";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.muster-agent;
      defaultText = lib.literalExpression "pkgs.muster-agent";
      description = "The package that has `bin/muster-agent`.";
    };

    stateDir = lib.mkOption {
      type = lib.types.path;
      default = "/var/lib/muster";
      description = "Where the agent keeps its keys, metadata and journal; owned by root, mode 0700.";
    };

    pollSeconds = lib.mkOption {
      type = lib.types.ints.between 5 600;
      default = 55;
      description = "How long one long poll waits at the controller, in seconds.";
    };

    buildSeconds = lib.mkOption {
      type = lib.types.ints.between 60 604800;
      default = 86400;
      description = "The longest that fetching and building one generation may take, in seconds.";
    };

    log = lib.mkOption {
      type = lib.types.str;
      default = "info";
      description = "What the agent logs, in the syntax of tracing's EnvFilter.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.etc."muster/agent.toml".text = ''
      state_dir = ${builtins.toJSON cfg.stateDir}
      poll_seconds = ${toString cfg.pollSeconds}
      build_seconds = ${toString cfg.buildSeconds}
    '';
    environment.systemPackages = [ cfg.package ];
  };
}
