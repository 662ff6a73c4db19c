# nixosModules.muster-controller
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.muster-controller;
in
{
  options.services.muster-controller = {
    enable = lib.mkEnableOption "Muster's controller";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package with `bin/muster`; `packages.SYSTEM.muster` of Muster's flake.";
    };

    folder = lib.mkOption {
      type = lib.types.str;
      default = "/var/lib/muster-controller";
      description = ''
        The folder `controller` that `muster init` made, brought here and owned by the user `muster`: `controller.toml`,
        the online key, the roots, and all that is stored. No operator's or root key belongs here.
      '';
    };

    openPort = lib.mkOption {
      type = lib.types.nullOr lib.types.port;
      default = null;
      description = "The port of `listen` in `controller.toml`, to be opened in the firewall.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    networking.firewall.allowedTCPPorts = lib.optional (cfg.openPort != null) cfg.openPort;
    users.users.muster = {
      isSystemUser = true;
      group = "muster";
      home = cfg.folder;
    };
    users.groups.muster = { };
    systemd.tmpfiles.rules = [ "d ${cfg.folder} 0700 muster muster -" ];
    systemd.services.muster-controller = {
      description = "Muster's controller";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      unitConfig = {
        StartLimitIntervalSec = 0;
        # Before `muster init` there is nothing to serve.
        ConditionPathExists = "${cfg.folder}/controller.toml";
      };
      serviceConfig = {
        Type = "exec";
        ExecStart = "${cfg.package}/bin/muster serve --config ${cfg.folder}/controller.toml";
        Restart = "always";
        RestartSec = 5;
        User = "muster";
        Group = "muster";
        UMask = "0077";
        LimitNOFILE = 65536;
        # Low ports are for those who ask for them in `listen`.
        AmbientCapabilities = "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = "CAP_NET_BIND_SERVICE";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        ReadWritePaths = [ cfg.folder ];
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" ];
      };
    };
  };
}
