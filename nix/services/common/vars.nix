# Variables for services, in a Clan flake and in any other. A service declares its generators once; they
# become Clan's where the machine has Clan's options, and Muster's otherwise.
{
  lib,
  config,
  options,
  class,
}:
let
  inClan = options ? clan.core.vars;
  generators = if inClan then config.clan.core.vars.generators else config.muster.vars.generators;
  directory = if inClan then config.clan.core.settings.directory else config.muster.vars.directory;
  machine = if inClan then config.clan.core.settings.machine.name else config.muster.vars.machine;

  # Clan has no restartUnits on Macs and throws; there a changed secret changes the plist instead (see
  # `fingerprint`).
  forClan =
    generator:
    if class == "nixos" then
      generator
    else
      generator // { files = lib.mapAttrs (_: file: removeAttrs file [ "restartUnits" ]) generator.files; };
in
rec {
  inherit machine;

  # What a machine's module returns to have these generators.
  declare =
    wanted:
    if inClan then
      { clan.core.vars.generators = lib.mapAttrs (_: forClan) wanted; }
    else
      { muster.vars.generators = wanted; };

  file = generator: name: generators.${generator}.files.${name};

  # Public values, of any machine.
  public = import ./public.nix { inherit lib directory; };

  # Changes when a secret does, without revealing anything about it.
  fingerprint =
    generator: name:
    let
      folder = if generators.${generator}.share then "shared" else "per-machine/${machine}";
      path = "${toString directory}/vars/${folder}/${generator}/${name}/secret";
    in
    import ../../modules/fingerprint.nix path;

  # How to generate values, for messages.
  generate = if inClan then "`clan vars generate`" else "Generating the variables";
}
