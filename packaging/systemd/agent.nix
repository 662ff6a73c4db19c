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
      # The activator restarts an agent whose unit has changed, and a changed setting is to change it.
      restartTriggers = [ config.environment.etc."muster/agent.toml".text ];
      path = [ config.nix.package ];
      environment.MUSTER_LOG = cfg.log;
      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe' cfg.package "muster-agent"} run";
        # The agent tells twice in this time that it lives.
        WatchdogSec = 300;
        Restart = "always";
        RestartSec = 5;
        OOMScoreAdjust = -500;
        # A builder that the kernel ends is Nix's affair, and no reason to stop the agent.
        OOMPolicy = "continue";
        # Nothing else is taken from it: Nix's builders and its sandbox, hooks, health checks and the preflight of the new
        # system are its children, and may need any part of the machine. The activation itself is a unit of its own.
      };
    };

    # Where /etc cannot be written (system.etc.overlay.mutable = false) the activator cannot leave a unit for the next boot.
    # This one stands in for it: while a switch is under way there is a link to the agent that began it. Where /etc can be
    # written, the unit of the same name in /etc/systemd/system.control comes first.
    systemd.services.muster-activator = {
      description = "Muster's activator, after a reboot in mid-switch";
      wantedBy = [ "multi-user.target" ];
      restartIfChanged = false;
      stopIfChanged = false;
      unitConfig = {
        ConditionPathExists = [
          "${toString cfg.stateDir}/at-boot/activator"
          "!/run/muster-activator"
        ];
        # It may be going back to a system that has no such unit, whose switch would stop it half way.
        X-StopOnRemoval = false;
      };
      serviceConfig = {
        Type = "exec";
        ExecStart = "${toString cfg.stateDir}/at-boot/activator --config /etc/muster/agent.toml activate";
        Restart = "on-failure";
        RestartSec = 5;
      };
    };
  };
}
