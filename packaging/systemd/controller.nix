# nixosModules.muster-controller
{ lib, config, pkgs, ... }:
let
  cfg = config.services.muster-controller;
in
{
  options.services.muster-controller = {
    enable = lib.mkEnableOption "the Muster controller";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.muster;
      defaultText = lib.literalExpression "pkgs.muster";
      description = "The package that has `bin/muster`.";
    };

    configFile = lib.mkOption {
      type = lib.types.str;
      default = "/var/lib/muster-controller/controller.toml";
      description = ''
        The controller.toml that `muster init` made. Its folder holds the online key, so it must not be a path of the
        flake or in the Nix store: copy it to the host once.
      '';
    };

    lowPort = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether `listen` in controller.toml has a port below 1024.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.nullOr lib.types.port;
      default = null;
      example = 8443;
      description = "The port to open: that of `listen` in controller.toml.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    networking.firewall.allowedTCPPorts = lib.optional (cfg.openFirewall != null) cfg.openFirewall;
    users.users.muster-controller = {
      isSystemUser = true;
      group = "muster-controller";
      home = "/var/lib/muster-controller";
    };
    users.groups.muster-controller = { };
    systemd.services.muster-controller = {
      description = "Muster controller";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      serviceConfig = {
        ExecStart = "${lib.getExe' cfg.package "muster"} serve --config ${lib.escapeShellArg cfg.configFile}";
        User = "muster-controller";
        Group = "muster-controller";
        StateDirectory = "muster-controller";
        StateDirectoryMode = "0700";
        UMask = "0077";
        Restart = "on-failure";
        RestartSec = 5;
        LimitNOFILE = 65536;
        AmbientCapabilities = lib.optional cfg.lowPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = lib.optional cfg.lowPort "CAP_NET_BIND_SERVICE";
        NoNewPrivileges = true;
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        # In a user namespace no capability counts outside, where the port is.
        PrivateUsers = !cfg.lowPort;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
        SystemCallErrorNumber = "EPERM";
      };
    };
  };
}
