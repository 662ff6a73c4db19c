# The rest of the stub of NixOS: its services.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
      description = "As in NixOS.";
    };
  needed =
    type:
    mkOption {
      inherit type;
      description = "As in NixOS.";
    };
  words = option (types.listOf types.str) [ ];
  flag = option types.bool false;
  maybe = type: option (types.nullOr type) null;
  many = options: option (types.attrsOf (types.submodule { inherit options; })) { };
in
{
  options.services = {
    openssh = {
      enable = flag;
      openFirewall = option types.bool true;
      ports = option (types.listOf types.port) [ 22 ];
      hostKeys = option (types.listOf types.attrs) [ ];
      settings = option (types.submodule { freeformType = types.attrsOf types.anything; }) { };
      extraConfig = option types.lines "";
    };
    zerotierone = {
      enable = flag;
      package = option types.package pkgs.zerotierone;
      port = option types.port 9993;
      joinNetworks = words;
      localConf = option (types.attrsOf types.anything) { };
    };
    prometheus.exporters.node = {
      enable = flag;
      package = option types.package pkgs.prometheus-node-exporter;
      port = option types.port 9100;
      listenAddress = option types.str "0.0.0.0";
      openFirewall = flag;
      extraFlags = words;
      enabledCollectors = words;
      disabledCollectors = words;
    };
    borgbackup = {
      repos = many {
        path = option types.path "/var/lib/borgbackup";
        user = option types.str "borg";
        group = option types.str "borg";
        quota = maybe types.str;
        authorizedKeys = option (types.listOf types.str) [ ];
        authorizedKeysAppendOnly = option (types.listOf types.str) [ ];
        allowSubRepos = flag;
      };
      jobs = many {
        paths = maybe (types.coercedTo types.str lib.singleton (types.listOf types.str));
        exclude = words;
        repo = needed types.str;
        doInit = option types.bool true;
        environment = option (types.attrsOf types.str) { };
        compression = option types.str "lz4";
        startAt = option (types.either types.str (types.listOf types.str)) "daily";
        persistentTimer = flag;
        user = option types.str "root";
        failOnWarnings = option types.bool true;
        encryption.mode = needed types.str;
        encryption.passCommand = maybe types.str;
        prune.keep = option (types.attrsOf (types.either types.int types.str)) { };
        readWritePaths = option (types.listOf types.path) [ ];
        extraCreateArgs = option (types.either types.str (types.listOf types.str)) "";
        preHook = option types.lines "";
        postHook = option types.lines "";
      };
    };
    syncthing = {
      enable = flag;
      package = option types.package pkgs.syncthing;
      user = option types.str "syncthing";
      group = option types.str "syncthing";
      dataDir = option types.path "/var/lib/syncthing";
      configDir = option types.path "/var/lib/syncthing/.config/syncthing";
      guiAddress = option types.str "127.0.0.1:8384";
      key = maybe types.str;
      cert = maybe types.str;
      openDefaultPorts = flag;
      overrideDevices = option types.bool true;
      overrideFolders = option types.bool true;
      settings = option (types.submodule {
        freeformType = types.attrsOf types.anything;
        options.devices = option (types.attrsOf types.attrs) { };
        options.folders = option (types.attrsOf types.attrs) { };
      }) { };
    };
    resolved.enable = flag;
    userborn.enable = flag;
  };
}
