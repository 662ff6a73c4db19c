# Variables and secrets of one machine: what generates them, and where they are stored. The layout on disk and
# the names of the options are Clan's, so that a fleet can move from one to the other without generating
# anything anew.
#
# Public values are read from the flake's source; secrets are there in encrypted form, and `path` is where the
# machine has them in the clear.
{
  lib,
  config,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.muster.vars;
  root = if pkgs.stdenv.hostPlatform.isDarwin then "wheel" else "root";

  file =
    generator:
    { name, config, ... }:
    let
      place = "${cfg.directory}/vars/${generator.folder}/${name}";
    in
    {
      options = {
        name = mkOption {
          type = types.str;
          default = name;
          readOnly = true;
          description = "The file's name.";
        };
        secret = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the file is kept encrypted.";
        };
        deploy = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the machine may read the file. Otherwise it only serves other generators.";
        };
        owner = mkOption {
          type = types.str;
          default = "root";
          description = "The user who owns the file on the machine.";
        };
        group = mkOption {
          type = types.str;
          default = root;
          defaultText = "root, on a Mac wheel";
          description = "The group that owns the file on the machine.";
        };
        mode = mkOption {
          type = types.strMatching "[0-7]{4}";
          default = "0400";
          description = "The file's mode on the machine, as four octal digits.";
        };
        neededFor = mkOption {
          type = types.enum [
            "partitioning"
            "activation"
            "users"
            "services"
          ];
          default = "services";
          description = "What comes only after the file is there.";
        };
        restartUnits = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "zerotierone.service" ];
          description = "What restarts when the file changes: units of systemd, on a Mac labels of launchd.";
        };
        path = mkOption {
          type = types.str;
          description = "Where the machine finds the file.";
        };
        value = mkOption {
          type = types.str;
          description = "What a public file says.";
        };
        exists = mkOption {
          type = types.bool;
          readOnly = true;
          description = "Whether the file was generated.";
        };
        source = mkOption {
          type = types.str;
          readOnly = true;
          description = "The file in the flake's source; encrypted, if it is secret.";
        };
      };
      config = {
        source = if config.secret then "${place}/secret" else "${place}/value";
        exists = builtins.pathExists config.source;
        value =
          if config.secret then
            throw "muster.vars: ${generator.name}/${name} is secret: its value is not known here, use its path."
          else if config.exists then
            builtins.readFile config.source
          else
            lib.mkOptionDefault (
              throw "muster.vars: ${cfg.machine} has no ${generator.name}/${name} yet. Generate it, and add ${
                lib.removePrefix "${cfg.directory}/" config.source
              } to the flake."
            );
        path = lib.mkDefault (
          if config.secret then
            "${cfg.secretsDirectories.${config.neededFor}}/vars/${generator.folder}/${name}"
          else
            builtins.toFile (lib.strings.sanitizeDerivationName name) config.value
        );
      };
    };

  prompt =
    { name, ... }:
    {
      options = {
        name = mkOption {
          type = types.str;
          default = name;
          description = "The prompt's name; the script finds the answer in `$prompts/NAME`.";
        };
        description = mkOption {
          type = types.str;
          default = name;
          description = "What the operator is asked.";
        };
        type = mkOption {
          type = types.enum [
            "hidden"
            "line"
            "multiline"
            "multiline-hidden"
          ];
          default = "line";
          description = "How the operator answers.";
        };
        persist = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the answer is kept as a secret file of the same name.";
        };
      };
    };

  generator =
    { name, config, ... }:
    {
      options = {
        name = mkOption {
          type = types.str;
          default = name;
          readOnly = true;
          description = "The generator's name.";
        };
        share = mkOption {
          type = types.bool;
          default = false;
          description = "Whether all machines have the same files. Otherwise each machine has its own.";
        };
        folder = mkOption {
          type = types.str;
          readOnly = true;
          internal = true;
          default = if config.share then "shared/${name}" else "per-machine/${cfg.machine}/${name}";
          description = "The generator's folder below `vars/`.";
        };
        files = mkOption {
          type = types.attrsOf (types.submodule (file config));
          default = { };
          description = "The files that the script writes into `$out`.";
        };
        prompts = mkOption {
          type = types.attrsOf (types.submodule prompt);
          default = { };
          description = "What the operator is asked before the script runs.";
        };
        dependencies = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Generators that run before this one; their files are in `$in/GENERATOR/FILE`.";
        };
        runtimeInputs = mkOption {
          type = types.listOf types.package;
          default = [ ];
          description = "Packages whose programs the script finds.";
        };
        script = mkOption {
          type = types.str;
          default = "";
          description = "What generates the files, run by bash on the operator's computer.";
        };
        finalScript = mkOption {
          type = types.path;
          readOnly = true;
          internal = true;
          # `pkgs` are those of the operator's computer when `muster vars generate` evaluates this. Only
          # `$in`, `$out` and `$prompts` are in the environment.
          default = pkgs.writeScript "generator-${lib.strings.sanitizeDerivationName name}" ''
            set -euo pipefail
            export PATH=${lib.makeBinPath (config.runtimeInputs ++ [ pkgs.coreutils ])}
            ${lib.concatMapStrings (prompt: ''
              cp "$prompts"/${lib.escapeShellArg prompt} "$out"/${lib.escapeShellArg prompt}
            '') (lib.attrNames (lib.filterAttrs (_: prompt: prompt.persist) config.prompts))}
            ${config.script}
          '';
          description = "The script with the programs that it finds.";
        };
        validation = mkOption {
          type = types.nullOr types.raw;
          default = null;
          description = "What the files depend on beside their dependencies: when it changes, they are out of date.";
        };
        validationHash = mkOption {
          type = types.nullOr types.str;
          readOnly = true;
          internal = true;
          default =
            if config.validation == null then
              null
            else
              builtins.hashString "sha256" (builtins.toJSON config.validation);
          description = "What `.validation-hash` beside the files is compared with.";
        };
      };
      config.files = lib.mapAttrs (_: _: { }) (lib.filterAttrs (_: prompt: prompt.persist) config.prompts);
    };
in
{
  options.muster.vars = {
    machine = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = "config.networking.hostName";
      description = "The machine's name in the fleet.";
    };
    directory = mkOption {
      type = types.coercedTo types.path toString types.str;
      description = "The flake's source, whose folder `vars` has the values and the encrypted secrets.";
    };
    secretsDirectories = mkOption {
      type = types.attrsOf types.str;
      description = "Where the machine has its secrets, by what they are needed for.";
    };
    defaultGroups = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "operators" ];
      description = "The groups in `sops/groups` that every new secret of this machine is encrypted to.";
    };
    generators = mkOption {
      type = types.attrsOf (types.submodule generator);
      default = { };
      description = "What generates this machine's variables and secrets.";
    };
  };

  config.muster.vars.secretsDirectories = lib.mapAttrs (_: lib.mkDefault) {
    partitioning = "/run/partitioning-secrets";
    # In memory on NixOS; on a Mac the agent mounts a RAM disk there.
    activation = "/run/muster/activation-secrets";
    users = "/run/secrets-for-users";
    services = "/run/secrets";
  };
}
