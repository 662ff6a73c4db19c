# darwinModules.muster-agent
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.muster-agent;
  # At boot /nix may not be mounted yet. A semicolon, since not every nix-darwin escapes `&&` for the plist.
  command = "/bin/wait4path /nix/store; exec ${cfg.package}/bin/muster-agent --config ${cfg.configFile} run";
in
{
  imports = [ ../options.nix ];

  config = lib.mkIf cfg.enable {
    # nix-darwin reloads a daemon when its plist changed, and by nothing else. Package and configuration are in it by
    # their store paths, so whatever changes in either changes it.
    launchd.daemons.muster-agent.serviceConfig = {
      # The agent looks for its own job by this label.
      Label = "org.muster.agent";
      ProgramArguments = [
        "/bin/sh"
        "-c"
        command
      ];
      RunAtLoad = true;
      KeepAlive = true;
      ThrottleInterval = 10;
      ExitTimeOut = 30;
      # Unloading the agent in the middle of a switch must not end what the switch has started.
      AbandonProcessGroup = true;
      StandardOutPath = "/var/log/muster-agent.log";
      StandardErrorPath = "/var/log/muster-agent.log";
    };
  };
}
