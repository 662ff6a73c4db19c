# The options of the agent, the same for NixOS and nix-darwin, and the file generated from them.
{ lib, config, pkgs, ... }:
let
  cfg = config.services.muster-agent;
  # TOML on one line. Its strings, numbers and booleans are written as in JSON.
  toml =
    value:
    if builtins.isAttrs value then
      "{ ${
        builtins.concatStringsSep ", " (
          map (name: "${builtins.toJSON name} = ${toml value.${name}}") (builtins.attrNames value)
        )
      } }"
    else if builtins.isList value then
      "[ ${builtins.concatStringsSep ", " (map toml value)} ]"
    else
      builtins.toJSON value;
  unless = nothing: name: value: if value == nothing then "" else "${name} = ${toml value}\n";
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

    group = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "wheel";
      description = "The group whose members may talk to the agent besides root: status, check-now, pause, resume, retry, rollback.";
    };

    proxy = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "http://proxy.example:3128";
      description = "The HTTP proxy that the agent and its Nix use for everything. All users of the machine can read it.";
    };

    noProxy = lib.mkOption {
      type = lib.types.nullOr (lib.types.listOf lib.types.str);
      default = null;
      example = [
        "intern.example"
        "10.0.0.0/8"
      ];
      description = "Hosts, domains and networks that need no proxy; by default, the machine itself.";
    };

    policy = lib.mkOption {
      type = lib.types.attrs;
      default = { };
      example = lib.literalExpression ''
        { window = { days = [ "sat" ]; from = "22:00"; to = "04:00"; }; minimum_battery = 50; }
      '';
      description = ''
        When and how this machine takes generations, in addition to what operators sign for it; the stricter holds. The
        agent refuses to start with an unknown setting.
      '';
    };

    checks = lib.mkOption {
      type = lib.types.attrs;
      default = { };
      example = lib.literalExpression "{ ssh = { tcp = \"127.0.0.1:22\"; }; }";
      description = "Health checks of this machine, in addition to those that operators sign.";
    };

    log = lib.mkOption {
      type = lib.types.str;
      default = "info";
      example = "info,muster_agent::nix=debug";
      description = "What the agent logs: a level, and levels for single modules.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.etc."muster/agent.toml".text = ''
      state_dir = ${builtins.toJSON cfg.stateDir}
      poll_seconds = ${toString cfg.pollSeconds}
      build_seconds = ${toString cfg.buildSeconds}
    ''
    + unless null "group" cfg.group
    + unless null "proxy" cfg.proxy
    + unless null "no_proxy" cfg.noProxy
    + unless { } "policy" cfg.policy
    + unless { } "checks" cfg.checks;
    environment.systemPackages = [ cfg.package ];
  };
}
