# darwinModules.muster-agent
{ lib, config, ... }:
let
  cfg = config.services.muster-agent;
  # nix-darwin reloads a daemon only when its plist changes, so whatever the agent reads once is hashed into
  # it.
  settings = builtins.hashString "sha256" config.environment.etc."muster/agent.toml".text;
in
{
  imports = [ ../options.nix ];

  options.services.muster-agent.stablePath = lib.mkOption {
    type = lib.types.str;
    default = "/Library/PrivilegedHelperTools/muster-agent";
    description = ''
      Where every generation's agent is copied to and runs from. macOS grants Full Disk Access and App Management to a
      path, and packaging/launchd/install installs the first agent there. Only root may write to that folder and all above
      it: otherwise the agent runs from the store, where no grant reaches it, and says so in its log.
    '';
  };

  config = lib.mkIf cfg.enable {
    launchd.daemons.muster-agent.serviceConfig = {
      Label = "org.muster.agent";
      # At boot /nix may not be mounted yet.
      ProgramArguments = [
        "/bin/sh"
        "-c"
        ''/bin/wait4path /nix/store && exec "$@"''
        "muster-agent"
        "/bin/sh"
        "${./start}"
        (lib.getExe' cfg.package "muster-agent")
        cfg.stablePath
        "run"
      ];
      EnvironmentVariables = {
        MUSTER_LOG = cfg.log;
        MUSTER_SETTINGS = settings;
        PATH = "/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin:/usr/sbin:/sbin";
      };
      RunAtLoad = true;
      KeepAlive = true;
      ThrottleInterval = 10;
      # Unloading a job ends its process group; the agent ends its own children itself.
      AbandonProcessGroup = true;
      ProcessType = "Background";
      StandardOutPath = "/var/log/muster-agent.log";
      StandardErrorPath = "/var/log/muster-agent.log";
    };
  };
}
