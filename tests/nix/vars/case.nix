# nix/modules/vars.nix: generators without Clan, with Clan's names and layout; and the helper that picks
# between them.
t:
let
  inherit (t) lib;
  source = t.repository + "/tests/nix/lib/source";
  generators = {
    borgbackup = {
      files."borgbackup.ssh" = { };
      files."borgbackup.ssh.pub".secret = false;
      files."borgbackup.repokey" = {
        neededFor = "activation";
        restartUnits = [ "a.service" ];
      };
    };
    zerotier-node-cinnabar = {
      share = true;
      files.identity-public.secret = false;
    };
    asked = {
      prompts.word = {
        type = "hidden";
        persist = true;
      };
      validation = {
        name = "cinnabar";
        number = 7;
      };
      files.never.secret = false;
    };
  };
  host =
    class:
    (if class == "nixos" then t.nixos else t.darwin) {
      modules = [
        (t.repository + "/nix/modules/vars.nix")
        {
          networking.hostName = "cinnabar";
          muster.vars = {
            directory = source;
            inherit generators;
          };
        }
      ];
    };
  nixos = (host "nixos").config.muster.vars.generators;
  darwin = (host "darwin").config.muster.vars.generators;
  helper = import (t.repository + "/nix/services/common/vars.nix") {
    inherit lib;
    class = "darwin";
    options = { };
    config.muster.vars = {
      directory = toString source;
      machine = "cinnabar";
      generators = nixos;
    };
  };
  clans = import (t.repository + "/nix/services/common/vars.nix") {
    inherit lib;
    class = "darwin";
    options.clan.core.vars = { };
    config = { };
  };
in
{
  expect = {
    "nixos.json" = t.generators nixos;
    "darwin.json" = t.generators darwin;
  };
  holds = {
    "public values are read from the source" =
      nixos.zerotier-node-cinnabar.files.identity-public.value
      == builtins.readFile (source + "/vars/shared/zerotier-node-cinnabar/identity-public/value");
    "what was not generated is known to be missing" =
      !nixos.asked.files.never.exists && nixos.borgbackup.files."borgbackup.ssh".exists;
    "what an answer is kept as is a secret file" = nixos.asked.files.word.secret;
    "validation is hashed as Clan does" =
      nixos.asked.validationHash
      == builtins.hashString "sha256" (builtins.toJSON { name = "cinnabar"; number = 7; });
    "a public file has a path on the machine" = lib.hasPrefix "/nix/store/" nixos.borgbackup.files."borgbackup.ssh.pub".path;
    "in a Clan on a Mac there is no restartUnits, which would throw" =
      (clans.declare generators).clan.core.vars.generators.borgbackup.files."borgbackup.repokey"
      == { neededFor = "activation"; };
    "the fingerprint of a secret is of its encrypted value, and of nothing that tells who reads it" =
      let
        of = folder: import (t.repository + "/nix/modules/fingerprint.nix") (./fingerprint + "/${folder}");
      in
      of "secret" == of "with-another-reader" && of "secret" != of "with-another-value" && of "none" == null;
    "services use that fingerprint" =
      helper.fingerprint "borgbackup" "borgbackup.ssh"
      == import (t.repository + "/nix/modules/fingerprint.nix") (
        source + "/vars/per-machine/cinnabar/borgbackup/borgbackup.ssh/secret"
      );
    "a value comes without the white space at its end" =
      helper.public {
        machine = "cinnabar";
        generator = "openssh";
        file = "ssh.id_ed25519.pub";
      } == lib.trim (builtins.readFile (source + "/vars/per-machine/cinnabar/openssh/ssh.id_ed25519.pub/value"));
    "a value that nobody generated is null" =
      helper.public {
        generator = "openssh";
        file = "ssh.id_ed25519.pub";
      } == null;
  };
  refuses = {
    "the value of a secret" = nixos.borgbackup.files."borgbackup.ssh".value;
    "a value that was not generated" = nixos.asked.files.never.value;
    "a mode that is none" =
      (t.nixos {
        modules = [
          (t.repository + "/nix/modules/vars.nix")
          {
            muster.vars.directory = source;
            muster.vars.generators.x.files.y.mode = "400";
          }
        ];
      }).config.muster.vars.generators.x.files.y.mode;
  };
}
