# nixosModules.muster-agent
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.muster-agent;
in
{
  imports = [ ../options.nix ];

  config = lib.mkIf cfg.enable {
    systemd.services.muster-agent = {
      description = "Muster's agent";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      # The switch that brings a new agent is run by the old one: the activator starts the new one at its end.
      restartIfChanged = false;
      stopIfChanged = false;
      # An agent that cannot start today may be able to tomorrow; nobody else would start it.
      unitConfig.StartLimitIntervalSec = 0;
      path = [ config.nix.package ];
      # No sandbox of systemd's: it builds into the store, sets the system profile and starts transient units.
      serviceConfig = {
        Type = "exec";
        ExecStart = "${cfg.package}/bin/muster-agent --config ${cfg.configFile} run";
        Restart = "always";
        RestartSec = 5;
        TimeoutStopSec = 30;
        StateDirectory = lib.mkIf (cfg.settings.state_dir == "/var/lib/muster") "muster";
        StateDirectoryMode = "0700";
        # When memory runs out, what is built goes first.
        OOMScoreAdjust = -500;
        OOMPolicy = "continue";
      };
    };
  };
}
