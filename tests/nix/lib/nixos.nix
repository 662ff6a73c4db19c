# A stub of NixOS: the options that Muster's modules set, with the types that NixOS documents for them. It
# computes nothing, so a configuration here shows what our modules set, not what NixOS makes of it.
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
  text = option types.lines "";
  maybe = type: option (types.nullOr type) null;
  group = options: types.submodule { inherit options; };
  many = options: option (types.attrsOf (group options)) { };

  # A value of a unit's section: systemd takes the same key several times.
  setting = types.oneOf [
    types.bool
    types.int
    types.float
    types.str
    types.path
    types.package
  ];
  section = option (types.attrsOf (types.either setting (types.listOf setting))) { };
  unit = {
    enable = option types.bool true;
    description = option types.str "";
    documentation = words;
    wantedBy = words;
    requiredBy = words;
    wants = words;
    requires = words;
    bindsTo = words;
    partOf = words;
    after = words;
    before = words;
    onFailure = words;
    unitConfig = section;
    restartTriggers = option (types.listOf types.unspecified) [ ];
  };
in
{
  imports = [ ./nixos-services.nix ];

  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = words;
    nixpkgs.hostPlatform = needed types.str;
    networking = {
      hostName = option types.str "nixos";
      useNetworkd = flag;
      domain = maybe types.str;
      hosts = option (types.attrsOf (types.listOf types.str)) { };
      extraHosts = text;
      firewall = {
        allowedTCPPorts = option (types.listOf types.port) [ ];
        allowedUDPPorts = option (types.listOf types.port) [ ];
        interfaces = many {
          allowedTCPPorts = option (types.listOf types.port) [ ];
          allowedUDPPorts = option (types.listOf types.port) [ ];
        };
      };
      wireguard.interfaces = many {
        ips = words;
        listenPort = maybe types.int;
        mtu = maybe types.int;
        privateKeyFile = maybe types.str;
        peers = option (types.listOf (group {
          name = option types.str "";
          publicKey = needed types.singleLineStr;
          presharedKeyFile = maybe types.str;
          allowedIPs = needed (types.listOf types.str);
          endpoint = maybe types.str;
          persistentKeepalive = maybe types.int;
          dynamicEndpointRefreshSeconds = option types.int 0;
        })) [ ];
      };
    };
    boot.kernel.sysctl = option (types.lazyAttrsOf (
      types.nullOr (
        types.oneOf [
          types.bool
          types.str
          types.int
        ]
      )
    )) { };
    environment = {
      systemPackages = option (types.listOf types.package) [ ];
      etc = many {
        enable = option types.bool true;
        text = maybe types.lines;
        source = maybe types.path;
        mode = option types.str "symlink";
        user = option types.str "+0";
        group = option types.str "+0";
      };
    };
    nix = {
      enable = option types.bool true;
      package = option types.package pkgs.nix;
      settings = mkOption {
        description = "As in NixOS.";
        default = { };
        type = types.submodule {
          freeformType = types.attrsOf types.anything;
          options = {
            substituters = words;
            trusted-substituters = words;
            trusted-public-keys = words;
          };
        };
      };
    };
    users = {
      mutableUsers = option types.bool true;
      groups = many {
        gid = maybe types.int;
        members = words;
      };
      users = option (types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              name = option types.str name;
              description = option types.str "";
              uid = maybe types.int;
              isNormalUser = flag;
              isSystemUser = flag;
              group = option types.str "";
              extraGroups = words;
              home = option types.path "/var/empty";
              createHome = flag;
              shell = option (types.nullOr (types.oneOf [ types.package types.path ])) null;
              hashedPasswordFile = maybe types.str;
              openssh.authorizedKeys = {
                keys = option (types.listOf types.singleLineStr) [ ];
                keyFiles = option (types.listOf types.path) [ ];
              };
            };
          }
        )
      )) { };
    };
    programs.fish.enable = flag;
    programs.zsh.enable = flag;
    programs.ssh.knownHosts = option (types.attrsOf (
      types.submodule (
        { name, config, ... }:
        {
          options = {
            certAuthority = flag;
            hostNames = option (types.listOf types.str) ([ name ] ++ config.extraHostNames);
            extraHostNames = words;
            publicKey = maybe types.str;
            publicKeyFile = maybe types.path;
          };
        }
      )
    )) { };
    systemd = {
      services = many (
        unit
        // {
          path = option (types.listOf (types.oneOf [ types.package types.str ])) [ ];
          environment = option (types.attrsOf (
            types.nullOr (
              types.oneOf [
                types.str
                types.path
                types.package
              ]
            )
          )) { };
          script = text;
          preStart = text;
          postStart = text;
          restartIfChanged = option types.bool true;
          stopIfChanged = option types.bool true;
          startAt = option (types.either types.str (types.listOf types.str)) [ ];
          serviceConfig = section;
        }
      );
      timers = many (unit // { timerConfig = section; });
      tmpfiles.rules = words;
    };
    system.build = option (types.lazyAttrsOf types.unspecified) { };
    system.activationScripts = option (types.attrsOf types.unspecified) { };
  };
}
