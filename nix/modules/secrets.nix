# Secrets on the machine, for both classes: sops-nix decrypts what users and services need, with the key that
# the agent made here; the agent itself decrypts what activation needs before it switches. In a Clan flake
# Clan declares its own secrets, and this module sets where their key is.
{
  lib,
  config,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.muster.secrets;
  inClan = options ? clan.core.vars;
  hasSopsNix = options ? sops.secrets;
  generators = if inClan then config.clan.core.vars.generators else config.muster.vars.generators;
  directory =
    if inClan then toString config.clan.core.settings.directory else config.muster.vars.directory;
  machine = if inClan then config.clan.core.settings.machine.name else config.muster.vars.machine;

  # Until `muster machines accept` removes it, a Clan's machine has the key that Clan made for it, and reads
  # its secrets where Clan puts them.
  accepted = !inClan || !(builtins.pathExists "${directory}/sops/secrets/${machine}-age.key/secret");

  # Every secret that this machine may read and that was generated.
  files = lib.concatLists (
    lib.mapAttrsToList (
      _: generator:
      lib.mapAttrsToList (
        _: file:
        let
          folder = if generator.share then "shared/${generator.name}" else "per-machine/${machine}/${generator.name}";
        in
        {
          inherit file;
          name = "${folder}/${file.name}";
          encrypted = "${directory}/vars/${folder}/${file.name}/secret";
        }
      ) (lib.filterAttrs (_: file: file.secret && file.deploy) generator.files)
    ) generators
  );
  generated = lib.filter (it: builtins.pathExists it.encrypted) files;
  neededFor = phases: lib.filter (it: lib.elem it.file.neededFor phases) generated;
  early = if accepted then neededFor [ "activation" ] else [ ];
  late = neededFor [
    "users"
    "services"
  ];
  # A store file of its own, so that a change to one secret affects only what depends on that one.
  source =
    it:
    builtins.path {
      name = lib.strings.sanitizeDerivationName "secret-${lib.replaceStrings [ "/" ] [ "_" ] it.name}";
      path = it.encrypted;
    };
  fingerprint = import ./fingerprint.nix;
in
{
  imports = [ ./vars.nix ];

  options.muster.secrets = {
    keyFile = mkOption {
      type = types.str;
      default = "/var/lib/muster/age.txt";
      description = "The machine's age key, as the agent made it at its enrolment. It never leaves the machine.";
    };
    package = mkOption {
      type = types.package;
      default = pkgs.sops;
      defaultText = lib.literalExpression "pkgs.sops";
      description = "The sops that the agent decrypts with before it activates.";
    };
    manifest = mkOption {
      type = types.attrs;
      readOnly = true;
      internal = true;
      description = "What the agent decrypts before it activates, and where to.";
    };
    restarts = mkOption {
      type = types.listOf types.attrs;
      readOnly = true;
      internal = true;
      description = "Secrets that something is to be restarted for, with what changes when they do.";
    };
  };

  config = lib.mkMerge [
    {
      muster.secrets = {
        # Even without files: then the agent removes what an earlier system had.
        manifest = {
          version = 1;
          sops = if early == [ ] then null else "${lib.getBin cfg.package}/bin/sops";
          directory =
            if inClan then
              "${config.clan.core.vars.sops.secretUploadDirectory}/activation"
            else
              "${config.muster.vars.secretsDirectories.activation}/vars";
          files = map (it: {
            inherit (it) name;
            source = source it;
            inherit (it.file) owner group mode;
          }) early;
        };
        restarts = map (it: {
          inherit (it) name;
          inherit (it.file) neededFor;
          units = it.file.restartUnits;
          fingerprint = fingerprint it.encrypted;
        }) (lib.filter (it: it.file.restartUnits != [ ]) generated);
      };
      environment.etc."muster/activation-secrets.json".text = builtins.toJSON cfg.manifest;
      assertions = [
        {
          assertion = late == [ ] || hasSopsNix;
          message = "${machine} has secrets that nothing decrypts for its users and services: add sops-nix to the flake's inputs. They are ${
            lib.concatMapStringsSep ", " (it: it.name) (lib.take 3 late)
          }${lib.optionalString (lib.length late > 3) " and others"}.";
        }
      ];
    }
    (lib.optionalAttrs hasSopsNix {
      sops.age.keyFile = lib.mkIf accepted (lib.mkOverride 900 cfg.keyFile);
    })
    (lib.optionalAttrs (hasSopsNix && !inClan) {
      sops.secrets = lib.listToAttrs (
        map (it: {
          name = "vars/${it.name}";
          value = {
            sopsFile = source it;
            format = "binary";
            path = it.file.path;
            inherit (it.file) owner group mode;
            neededForUsers = it.file.neededFor == "users";
          }
          # There sops-nix restarts them itself, once the decrypted value has changed.
          // lib.optionalAttrs (options ? systemd.services) { inherit (it.file) restartUnits; };
        }) late
      );
    })
    (lib.optionalAttrs inClan {
      # In memory, instead of the disk to which Clan's own tools would upload.
      clan.core.vars.sops.secretUploadDirectory = lib.mkIf accepted (lib.mkDefault "/run/muster");
    })
  ];
}
