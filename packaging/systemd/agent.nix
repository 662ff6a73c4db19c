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
      # A switch that restarts the agent would end it in the middle of that switch. The activator, a unit of
      # its own, starts the new agent at the end.
      restartIfChanged = false;
      stopIfChanged = false;
      # The activator restarts an agent whose unit has changed, so a changed setting must change the unit.
      restartTriggers = [ config.environment.etc."muster/agent.toml".text ];
      path = [ config.nix.package ];
      environment.MUSTER_LOG = cfg.log;
      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe' cfg.package "muster-agent"} run";
        # The agent reports twice in this time that it is alive.
        WatchdogSec = 300;
        Restart = "always";
        RestartSec = 5;
        OOMScoreAdjust = -500;
        # A builder that the kernel kills is Nix's concern, and no reason to stop the agent.
        OOMPolicy = "continue";
        # No other sandboxing: Nix's builders and its sandbox, hooks, health checks and the preflight of the
        # new system are its children, and may need any part of the machine. The activation itself is a unit
        # of its own.
      };
    };

    # Where /etc is read-only (system.etc.overlay.mutable = false) the activator cannot leave a unit for the
    # next boot. This one replaces it: while a switch is under way there is a link to the agent that began it.
    # Where /etc is writable, the unit of the same name in /etc/systemd/system.control takes precedence.
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
        # It may be going back to a system without such a unit, whose switch would stop it halfway.
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
