# Folders that machines of both classes keep in sync.
{ lib, ... }:
let
  generators = pkgs: owner: {
    # Clan's names, so that devices keep their IDs when a fleet moves from one to the other.
    syncthing = {
      files = {
        key = { inherit owner; };
        cert = { inherit owner; };
        api = { inherit owner; };
        id.secret = false;
      };
      runtimeInputs = [
        pkgs.coreutils
        pkgs.gnused
        pkgs.syncthing
      ];
      script = ''
        home=$(mktemp -d)
        syncthing generate --home="$home" > /dev/null
        cp "$home"/key.pem "$out"/key
        cp "$home"/cert.pem "$out"/cert
        sed -n 's|.*<apikey>\(.*\)</apikey>.*|\1|p' "$home"/config.xml | tr -d '\n' > "$out"/api
        sed -n 's|.*<device id="\([^"]*\)".*|\1|p' "$home"/config.xml | head -n 1 | tr -d '\n' > "$out"/id
        rm -r "$home"
      '';
    };
  };

  # { devices, folders, missing } in Syncthing's form, from this machine's point of view.
  fleetOf =
    vars:
    { instanceName, machine, roles, ... }:
    config:
    let
      peers = roles.peer.machines;
      idOf =
        name:
        vars.public {
          machine = name;
          generator = "syncthing";
          file = "id";
        };
      ready = lib.filter (name: idOf name != null) (lib.attrNames peers);
      own = peers.${machine.name}.settings;
      # Found by discovery; in the fleet's networks without it.
      addressesOf =
        name:
        let
          ipv6 = import ../common/ipv6.nix;
          known = lib.concatMap (network: network.hosts.${name}.addresses or [ ]) (
            lib.attrValues config.muster.networks
          );
        in
        lib.unique (
          peers.${name}.settings.addresses
          ++ map (address: "tcp://${ipv6.bracketed address}:22000") known
          ++ [ "dynamic" ]
        );
      # A folder is on every machine that names it; all of them share it.
      membersOf = folder: lib.filter (name: peers.${name}.settings.folders ? ${folder}) ready;
    in
    {
      devices =
        lib.genAttrs (lib.remove machine.name ready) (name: {
          id = idOf name;
          inherit name;
          addresses = addressesOf name;
        })
        // lib.mapAttrs (name: device: {
          inherit (device) id addresses;
          inherit name;
        }) own.extraDevices;
      folders = lib.mapAttrs (folder: value: {
        id = folder;
        label = folder;
        inherit (value) path type;
        devices =
          lib.remove machine.name (membersOf folder)
          ++ map (
            device:
            if own.extraDevices ? ${device} then
              device
            else
              throw "instances.${instanceName}: ${machine.name} shares ${folder} with ${device}, which is none of its extraDevices."
          ) value.extraDevices;
      }) own.folders;
      id = idOf machine.name;
      warnings = map (
        name:
        "instances.${instanceName}: ${name} has no id yet, so it is left out. ${vars.generate} for ${name} makes it."
      ) (lib.subtractLists ready (lib.attrNames peers));
    };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/syncthing";
    description = "Folders in step between machines of both classes";
    categories = [ "Utility" ];
    readme = builtins.readFile ./README.md;
    constraints.maxInstances = 1;
  };

  roles.peer = {
    description = "Shares the folders that it names with every machine that names them too.";
    interface.options = {
      folders = lib.mkOption {
        type = lib.types.attrsOf (
          lib.types.submodule {
            options = {
              path = lib.mkOption {
                type = lib.types.str;
                example = "~/Documents";
                description = "Where the folder lies on this machine; `~` is the home of who runs Syncthing.";
              };
              type = lib.mkOption {
                type = lib.types.enum [
                  "sendreceive"
                  "sendonly"
                  "receiveonly"
                ];
                default = "sendreceive";
                description = "Which way changes go.";
              };
              extraDevices = lib.mkOption {
                type = lib.types.listOf lib.types.str;
                default = [ ];
                description = "Devices outside the fleet that share the folder, by their names in extraDevices.";
              };
            };
          }
        );
        default = { };
        description = "The folders on this machine, by the id that all machines give them.";
      };
      extraDevices = lib.mkOption {
        type = lib.types.attrsOf (
          lib.types.submodule {
            options = {
              id = lib.mkOption {
                type = lib.types.str;
                description = "The device's id.";
              };
              addresses = lib.mkOption {
                type = lib.types.listOf lib.types.str;
                default = [ "dynamic" ];
                description = "Where it is found.";
              };
            };
          }
        );
        default = { };
        description = "Devices outside the fleet, such as a telephone.";
      };
      addresses = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "tcp://cinnabar.example.org:22000" ];
        description = "Where the others find this machine, beside discovery and the fleet's networks.";
      };
      override = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether devices and folders that were added by hand are removed.";
      };
      openFirewall = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether to open Syncthing's ports on NixOS hosts; those of its web page stay closed.";
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
          fleet = fleetOf vars instance config;
        in
        {
          imports = [
            ../../modules/vars.nix
            ../../modules/networks.nix
          ];
          config = lib.mkMerge [
            (vars.declare (generators pkgs "root"))
            {
              services.syncthing = {
                enable = true;
                key = (vars.file "syncthing" "key").path;
                cert = (vars.file "syncthing" "cert").path;
                openDefaultPorts = settings.openFirewall;
                overrideDevices = settings.override;
                overrideFolders = settings.override;
                settings = { inherit (fleet) devices folders; };
              };
              inherit (fleet) warnings;
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
          fleet = fleetOf vars instance config;
          user = config.system.primaryUser;
          # nix-darwin's own attribute fails where the user is declared without a home.
          declared = config.users.users.${user}.home or null;
          home = if declared == null then "/Users/${user}" else declared;
          # In the form of the REST API.
          wanted = {
            inherit (settings) override;
            devices = map (device: {
              inherit (device) name addresses;
              deviceID = device.id;
            }) (lib.attrValues fleet.devices);
            folders = map (
              folder:
              folder
              // {
                devices = map (device: { deviceID = fleet.devices.${device}.id; }) folder.devices;
              }
            ) (lib.attrValues fleet.folders);
          };
        in
        {
          imports = [
            ../../modules/vars.nix
            ../../modules/networks.nix
          ];
          config = lib.mkMerge [
            (vars.declare (generators pkgs (if user == null then "root" else user)))
            {
              inherit (fleet) warnings;
              assertions = [
                {
                  assertion = user != null;
                  message = "instances.${instanceName}: whose folders are these on ${machine.name}? Set its system.primaryUser.";
                }
              ];
            }
            (lib.mkIf (user != null) {
              environment.systemPackages = [ pkgs.syncthing ];
              # A launch agent of the folders' owner: macOS asks them for access to their folders.
              launchd.user.agents.syncthing = {
                managedBy = "the service syncthing";
                serviceConfig = launchd.daemon {
                  name = "syncthing";
                  log = "${home}/Library/Logs/syncthing.log";
                  path = [
                    pkgs.syncthing
                    pkgs.jq
                  ];
                  program = [
                    "/bin/sh"
                    "${./syncthing.sh}"
                    "${home}/Library/Application Support/Syncthing"
                    (vars.file "syncthing" "key").path
                    (vars.file "syncthing" "cert").path
                    (vars.file "syncthing" "api").path
                    "${pkgs.writeText "syncthing-wanted.json" (builtins.toJSON wanted)}"
                  ];
                  configuration = {
                    inherit wanted;
                    fingerprint = vars.fingerprint "syncthing" "key";
                  };
                };
              };
            })
          ];
        };
    };
  };
}
