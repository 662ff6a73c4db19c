# SSH in the fleet: servers with host keys from the variables, and clients that know all of them.
{ lib, ... }:
let
  helper = class: { config, options, ... }: import ../common/vars.nix { inherit lib config options class; };

  generators = pkgs: {
    # Clan's names, so that hosts keep their keys when a fleet moves from one to the other.
    openssh = {
      files."ssh.id_ed25519" = { };
      files."ssh.id_ed25519.pub".secret = false;
      runtimeInputs = [ pkgs.openssh ];
      script = ''
        ssh-keygen -q -t ed25519 -N "" -C "" -f "$out"/ssh.id_ed25519
      '';
    };
  };

  # What a client knows about all servers. A server without a key yet is left out, with a warning.
  known =
    class:
    { instanceName, roles, ... }:
    arguments@{ config, ... }:
    let
      vars = helper class arguments;
      servers = roles.server.machines or { };
      keys = lib.mapAttrs (
        machine: _:
        vars.public {
          inherit machine;
          generator = "openssh";
          file = "ssh.id_ed25519.pub";
        }
      ) servers;
      # Under the configured names, and under each that a network of the fleet gives.
      namesOf =
        machine: settings:
        lib.unique (
          [ machine ]
          ++ map (domain: "${machine}.${domain}") settings.searchDomains
          ++ settings.hostNames
          ++ lib.concatMap (
            network:
            let
              host = network.hosts.${machine} or { addresses = [ ]; names = [ ]; };
            in
            host.names ++ host.addresses
          ) (lib.attrValues config.muster.networks)
        );
    in
    {
      imports = [
        ../../modules/vars.nix
        ../../modules/networks.nix
      ];
      programs.ssh.knownHosts = lib.mapAttrs' (machine: key: {
        name = "${instanceName}-${machine}";
        value = {
          hostNames = namesOf machine servers.${machine}.settings;
          publicKey = key;
        };
      }) (lib.filterAttrs (_: key: key != null) keys);
      warnings =
        let
          missing = lib.attrNames (lib.filterAttrs (_: key: key == null) keys);
        in
        lib.optional (missing != [ ])
          "instances.${instanceName}: this machine does not know ${lib.concatStringsSep ", " missing}, which have no host key yet. ${vars.generate} makes them.";
    };

  keysFor = settings: {
    users.users =
      lib.optionalAttrs (settings.authorizedKeys != { }) {
        root.openssh.authorizedKeys.keys = lib.attrValues settings.authorizedKeys;
      }
      // lib.mapAttrs (_: keys: { openssh.authorizedKeys = { inherit keys; }; }) settings.userKeys;
  };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/sshd";
    description = "SSH servers and the host keys that the fleet knows them by";
    categories = [ "Network" ];
    readme = builtins.readFile ./README.md;
  };

  roles.server = {
    description = "Runs sshd with a host key from the variables.";
    interface.options = {
      authorizedKeys = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
        example = { alice = "ssh-ed25519 AAAA…"; };
        description = "Public keys that may log in as root, by whatever names.";
      };
      userKeys = lib.mkOption {
        type = lib.types.attrsOf (lib.types.listOf lib.types.str);
        default = { };
        example = { alice = [ "ssh-ed25519 AAAA…" ]; };
        description = "Public keys that may log in as a user, by the user's name.";
      };
      passwordAuthentication = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether a password opens a session.";
      };
      searchDomains = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "example.org" ];
        description = "Domains in which this machine's name is known.";
      };
      hostNames = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "192.0.2.7" ];
        description = "Further names and addresses of this machine.";
      };
    };
    perInstance =
      { settings, ... }:
      {
        nixosModule =
          arguments@{ config, options, pkgs, ... }:
          let
            vars = helper "nixos" arguments;
          in
          {
            imports = [ ../../modules/vars.nix ];
            config = lib.mkMerge [
              (vars.declare (generators pkgs))
              (keysFor settings)
              {
                services.openssh = {
                  enable = true;
                  hostKeys = [
                    {
                      type = "ed25519";
                      inherit ((vars.file "openssh" "ssh.id_ed25519")) path;
                    }
                  ];
                  settings = {
                    PasswordAuthentication = settings.passwordAuthentication;
                    KbdInteractiveAuthentication = settings.passwordAuthentication;
                  };
                };
              }
            ];
          };

        darwinModule =
          arguments@{ config, options, pkgs, ... }:
          let
            vars = helper "darwin" arguments;
            yes = value: if value then "yes" else "no";
          in
          {
            imports = [ ../../modules/vars.nix ];
            config = lib.mkMerge [
              (vars.declare (generators pkgs))
              (keysFor settings)
              {
                # Once a user is declared, nix-darwin needs their home: without it, it cannot find the primary
                # user's.
                users.users = lib.genAttrs (lib.filter (user: user == config.system.primaryUser) (
                  lib.attrNames settings.userKeys
                )) (user: { home = lib.mkDefault "/Users/${user}"; });
              }
              {
                services.openssh = {
                  enable = true;
                  # nix-darwin creates every missing key in this list, and the one from the variables is
                  # missing until it is decrypted: another would replace it. Apple's own keys serve clients
                  # that know none of ours.
                  hostKeys = [ ];
                  extraConfig = ''
                    HostKey ${(vars.file "openssh" "ssh.id_ed25519").path}
                    HostKey /etc/ssh/ssh_host_ecdsa_key
                    HostKey /etc/ssh/ssh_host_rsa_key
                    PasswordAuthentication ${yes settings.passwordAuthentication}
                    KbdInteractiveAuthentication ${yes settings.passwordAuthentication}
                  '';
                };
              }
            ];
          };
      };
  };

  roles.client = {
    description = "Knows the host keys of all servers of the instance.";
    interface = { };
    perInstance = instance: {
      nixosModule = known "nixos" instance;
      darwinModule = known "darwin" instance;
    };
  };
}
