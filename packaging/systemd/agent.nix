# nixosModules.muster-agent
{ lib, config, ... }:
let
  cfg = config.services.muster-agent;
in
{
  imports = [ ../options.nix ];

  config = lib.mkIf cfg.enable {
    systemd.services.muster-agent = {
      description = "Muster agent";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nix-daemon.socket"
      ];
      # A switch that restarts the agent would end the agent in the middle of that switch. The activator, which is a
      # unit of its own, starts the new one at the end.
      restartIfChanged = false;
      stopIfChanged = false;
      # Enrolment comes first; until then there is nothing to run, and nothing has failed.
      unitConfig.ConditionPathExists = "${cfg.stateDir}/enrolment.json";
      path = [ config.nix.package ];
      environment.MUSTER_LOG = cfg.log;
      serviceConfig = {
        ExecStart = "${lib.getExe' cfg.package "muster-agent"} run";
        Restart = "always";
        RestartSec = 5;
        OOMScoreAdjust = -500;
      };
    };
  };
}
