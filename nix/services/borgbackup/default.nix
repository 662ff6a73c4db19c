# Backups with Borg: clients on both classes, servers on NixOS.
{ lib, ... }:
let
  ipv6 = import ../common/ipv6.nix;

  generators = pkgs: {
    # Clan's names, so that repositories stay readable when a fleet moves from one to the other.
    borgbackup = {
      files."borgbackup.ssh" = { };
      files."borgbackup.ssh.pub".secret = false;
      files."borgbackup.repokey" = { };
      runtimeInputs = [
        pkgs.coreutils
        pkgs.openssh
        pkgs.xkcdpass
      ];
      script = ''
        ssh-keygen -q -t ed25519 -N "" -C "" -f "$out"/borgbackup.ssh
        xkcdpass --numwords 6 --delimiter - > "$out"/borgbackup.repokey
      '';
    };
  };

  # { NAME = repository; } of the fleet's servers and of others.
  destinationsOf =
    { instanceName, settings, roles, machine, ... }:
    class: config:
    let
      addressOf =
        server: its:
        if its.network == null then
          if its.address != null then
            its.address
          else if class == "darwin" then
            lib.head (knownOf config server ++ [ server ])
          else
            server
        else
          lib.head
            (config.muster.networks.${its.network}.hosts.${server}
              or (throw "instances.${instanceName}: ${machine.name} does not know ${server} in the network ${its.network}. Both must be in it, and their variables generated.")
            ).addresses;
    in
    lib.mapAttrs (
      server: its: "ssh://borg@${ipv6.bracketed (addressOf server its.settings)}/./."
    ) (roles.server.machines or { })
    // settings.destinations;

  # A Mac's /etc/hosts is not ours, so a bare name means nothing there: the server's full name, or its address
  # in a network.
  knownOf =
    config: server:
    config.muster.names.${server} or [ ]
    ++ lib.concatMap (network: network.hosts.${server}.addresses or [ ]) (lib.attrValues config.muster.networks);
  # Servers that a Mac knows only by their bare name.
  unknownTo =
    { roles, ... }:
    config:
    lib.attrNames (
      lib.filterAttrs (
        server: its: its.settings.network == null && its.settings.address == null && knownOf config server == [ ]
      ) (roles.server.machines or { })
    );

  rshOf =
    vars:
    "ssh -i ${(vars.file "borgbackup" "borgbackup.ssh").path} -o IdentitiesOnly=yes -o PasswordAuthentication=no -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30 -o ServerAliveInterval=30";

  clock = number: lib.fixedWidthNumber 2 number;
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/borgbackup";
    description = "Encrypted backups of machines of both classes";
    categories = [ "System" ];
    readme = builtins.readFile ./README.md;
  };

  roles.client = {
    description = "Backs its folders up to every server of the instance, on NixOS or a Mac.";
    interface.options = {
      folders = lib.mkOption {
        type = lib.types.nonEmptyListOf lib.types.str;
        example = [ "/home" ];
        description = "What to back up.";
      };
      exclude = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "*/.cache" ];
        description = "Borg's patterns of what to leave out.";
      };
      at = {
        hour = lib.mkOption {
          type = lib.types.ints.between 0 23;
          default = 1;
          description = "The hour of the daily backup, in the machine's time.";
        };
        minute = lib.mkOption {
          type = lib.types.ints.between 0 59;
          default = 0;
          description = "The minute of the daily backup.";
        };
      };
      keep = lib.mkOption {
        type = lib.types.attrsOf (lib.types.either lib.types.ints.unsigned lib.types.str);
        default = {
          within = "1d";
          daily = 7;
          weekly = 4;
          monthly = 6;
        };
        description = "Which archives to keep, as `borg prune --keep-…` has it.";
      };
      destinations = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
        example = { offsite = "ssh://u1234@backup.example.org:23/./repository"; };
        description = "Repositories outside the fleet, by name.";
      };
    };
    perInstance = instance@{ instanceName, machine, settings, roles, ... }: {
      nixosModule =
        { config, options, pkgs, ... }:
        let
          vars = import ../common/vars.nix {
            inherit lib config options;
            class = "nixos";
          };
        in
        {
          imports = [
            ../../modules/vars.nix
            ../../modules/networks.nix
          ];
          config = lib.mkMerge [
            (vars.declare (generators pkgs))
            {
              services.borgbackup.jobs = lib.mapAttrs' (name: repo: {
                name = "${instanceName}-${name}";
                value = {
                  inherit repo;
                  inherit (settings) exclude;
                  paths = settings.folders;
                  environment = {
                    BORG_RSH = rshOf vars;
                    # A server may now be reached at another address.
                    BORG_RELOCATED_REPO_ACCESS_IS_OK = "yes";
                  };
                  compression = "auto,zstd";
                  startAt = "*-*-* ${clock settings.at.hour}:${clock settings.at.minute}:00";
                  persistentTimer = true;
                  encryption = {
                    mode = "repokey";
                    passCommand = "cat ${(vars.file "borgbackup" "borgbackup.repokey").path}";
                  };
                  prune = { inherit (settings) keep; };
                };
              }) (destinationsOf instance "nixos" config);
            }
          ];
        };

      darwinModule =
        { config, options, pkgs, ... }:
        let
          launchd = import ../common/launchd.nix { inherit lib; };
          vars = import ../common/vars.nix {
            inherit lib config options;
            class = "darwin";
          };
          lines = lib.concatMapStrings (line: line + "\n");
          job = name: repo: {
            name = "borgbackup-${instanceName}-${name}";
            value.serviceConfig =
              launchd.daemon {
                name = "borgbackup-${instanceName}-${name}";
                path = [
                  pkgs.borgbackup
                  pkgs.openssh
                ];
                program = [
                  "/bin/sh"
                  "${./backup.sh}"
                  repo
                  (vars.file "borgbackup" "borgbackup.repokey").path
                  "${pkgs.writeText "borgbackup-folders" (lines settings.folders)}"
                  "${pkgs.writeText "borgbackup-exclude" (lines settings.exclude)}"
                ]
                ++ lib.mapAttrsToList (rule: value: "--keep-${rule}=${toString value}") settings.keep;
                configuration = {
                  inherit repo settings;
                  fingerprint = vars.fingerprint "borgbackup" "borgbackup.ssh";
                };
              }
              // {
                # A Mac that slept through it makes the backup when it wakes.
                RunAtLoad = false;
                KeepAlive = false;
                StartCalendarInterval = [
                  {
                    Hour = settings.at.hour;
                    Minute = settings.at.minute;
                  }
                ];
                LowPriorityIO = true;
              };
          };
          named = lib.mapAttrs' job (destinationsOf instance "darwin" config);
        in
        {
          imports = [
            ../../modules/vars.nix
            ../../modules/networks.nix
          ];
          config = lib.mkMerge [
            (vars.declare (generators pkgs))
            {
              environment.systemPackages = [ pkgs.borgbackup ];
              warnings = map (
                server:
                "instances.${instanceName}: ${machine.name} finds ${server} by that bare name alone, which a Mac resolves only where your network's DNS does. Set the server's settings.address or settings.network, or add the service hosts."
              ) (unknownTo instance config);
              launchd.daemons = lib.mapAttrs (
                _: daemon:
                lib.recursiveUpdate daemon { serviceConfig.EnvironmentVariables.BORG_RSH = rshOf vars; }
              ) named;
            }
          ];
        };
    };
  };

  roles.server = {
    description = "A NixOS host that keeps the clients' repositories.";
    interface.options = {
      directory = lib.mkOption {
        type = lib.types.str;
        default = "/var/lib/borgbackup";
        description = "Where the repositories lie, one folder for each client.";
      };
      address = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "backup.example.org";
        description = "Where clients find this host. If null: its name in the fleet; on Macs its full name by the service hosts, or else its address in a network that both are in.";
      };
      network = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "zerotier";
        description = "An instance of zerotier or wireguard, to be found at the host's address in it.";
      };
      appendOnly = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether clients may only add. Then nothing is pruned but by hand on the server.";
      };
    };
    perInstance = { instanceName, settings, roles, ... }: {
      nixosModule =
        { config, options, ... }:
        let
          vars = import ../common/vars.nix {
            inherit lib config options;
            class = "nixos";
          };
          keyOf =
            client:
            vars.public {
              machine = client;
              generator = "borgbackup";
              file = "borgbackup.ssh.pub";
            };
          clients = lib.attrNames (roles.client.machines or { });
          ready = lib.filter (client: keyOf client != null) clients;
        in
        {
          imports = [ ../../modules/vars.nix ];
          services.openssh.enable = true;
          services.borgbackup.repos = lib.listToAttrs (
            map (client: {
              name = "${instanceName}-${client}";
              value = {
                path = "${settings.directory}/${client}";
                ${if settings.appendOnly then "authorizedKeysAppendOnly" else "authorizedKeys"} = [
                  (keyOf client)
                ];
              };
            }) ready
          );
          warnings = map (
            client:
            "instances.${instanceName}: ${client} has no key yet, so it cannot back up here. ${vars.generate} for ${client} makes it."
          ) (lib.subtractLists ready clients);
        };
    };
  };
}
