# nix/modules/secrets-*.nix: what a machine's system declares of its secrets, with sops-nix, alone and in a Clan.
# needs: sops-nix
t:
let
  inherit (t) lib;
  modules = t.repository + "/nix/modules";
  generators = {
    token = {
      files.key.restartUnits = [
        "a.service"
        "org.example.a"
      ];
      files.early = {
        neededFor = "activation";
        restartUnits = [ "early.service" ];
        owner = "early";
        mode = "0440";
      };
      files.undeployed.deploy = false;
    };
    users = {
      share = true;
      files.hash.neededFor = "users";
      files.key = {
        owner = "bob";
        group = "staff";
        restartUnits = [ "b" ];
      };
    };
    none.files.never = { };
  };
  host =
    class:
    {
      source ? ./source,
      more ? { },
    }:
    (if class == "nixos" then t.nixos else t.darwin) {
      modules = [
        (modules + "/secrets-${class}.nix")
        t.sops-nix-flake."${class}Modules".sops
        {
          networking.hostName = "tin";
          muster.vars = {
            directory = source;
            inherit generators;
          };
        }
        more
      ];
    };
  jobs = {
    launchd.daemons.a.serviceConfig = {
      Label = "org.example.a";
      ProgramArguments = [ "/bin/a" ];
    };
    launchd.daemons.b.command = "/bin/b";
    launchd.daemons.c.command = "/bin/c";
  };
  mac = host "darwin" { more = jobs; };
  agent = {
    imports = [ (t.repository + "/packaging/systemd/agent.nix") ];
    services.muster-agent.enable = true;
    systemd.services = lib.genAttrs [ "a" "early" "late" ] (_: { });
  };
  nixos = host "nixos" { more = agent; };
  variables = it: name: it.config.launchd.daemons.${name}.serviceConfig.EnvironmentVariables;
  other = host "darwin" {
    source = ./source-with-another-value;
    more = jobs;
  };
  manifest =
    it:
    builtins.fromJSON (
      builtins.unsafeDiscardStringContext it.config.environment.etc."muster/activation-secrets.json".text
    );
  installed =
    it:
    lib.mapAttrs (_: secret: {
      inherit (secret)
        path
        owner
        group
        mode
        neededForUsers
        format
        ;
      sopsFile = builtins.unsafeDiscardStringContext (toString secret.sopsFile);
      restartUnits = secret.restartUnits or null;
    }) it.config.sops.secrets;

  # The same in a Clan; `old` still has the key that Clan made for it.
  inClan = t.clan {
    inventory.machines.tin.machineClass = "nixos";
    inventory.machines.old.machineClass = "nixos";
    inventory.machines.iron.machineClass = "darwin";
    inventory.instances = { };
    directory = ./source;
    machines =
      lib.mapAttrs
        (name: class: {
          imports = [ (modules + "/secrets-${class}.nix") ];
          sops.validateSopsFiles = false;
          clan.core.vars.generators.token.files = {
            key = { };
            early.neededFor = "activation";
          };
        })
        {
          tin = "nixos";
          old = "nixos";
          iron = "darwin";
        };
  };
in
{
  expect = {
    "nixos.json" = installed nixos;
    "darwin.json" = installed mac;
    "nixos-manifest.json" = manifest nixos;
    "darwin-manifest.json" = manifest mac;
    "nixos-activation" = nixos.config.system.activationScripts.muster-secrets.text;
    "darwin-activation" = lib.concatStringsSep "\n" (
      lib.take 7 (lib.splitString "\n" mac.config.system.activationScripts.launchd.text)
    );
    "a.plist" = mac.config.environment.launchDaemons."org.example.a.plist".text;
  }
  // t.inClan {
    "clan/nixos-manifest.json" = manifest inClan.nixosConfigurations.tin;
  };
  holds = {
    "sops-nix decrypts with the machine's own key" =
      nixos.config.sops.age.keyFile == "/var/lib/muster/age.txt" && mac.config.sops.age.keyFile == "/var/lib/muster/age.txt";
    "a job restarts for a secret by its label, and by its name" =
      variables mac "a" ? MUSTER_SECRETS && variables mac "b" ? MUSTER_SECRETS && variables mac "c" == null;
    "another value of a secret changes just the jobs that use it" =
      variables other "a" != variables mac "a" && variables other "b" == variables mac "b";
    "a unit restarts for what the agent decrypts; for the rest sops-nix restarts it" =
      let
        triggers = lib.mapAttrs (_: unit: lib.length unit.restartTriggers) (
          lib.getAttrs [ "a" "early" "late" ] nixos.config.systemd.services
        );
      in
      triggers == {
        a = 0;
        early = 1;
        late = 0;
      }
      && !((host "nixos" { }).config.systemd.services ? early);
    "secrets have their files where the options say" =
      lib.all (
        name: nixos.config.muster.vars.generators.users.files.${name}.path == nixos.config.sops.secrets."vars/shared/users/${name}".path
      ) [ "hash" "key" ];
    "without secrets for activation the agent is told so" =
      let
        it = manifest (host "nixos" { source = ./nothing; });
      in
      it.files == [ ] && it.sops == null && it.directory == "/run/muster/activation-secrets/vars";
    "and nothing is done at a start" =
      !(
        (host "nixos" {
          source = ./nothing;
          more = agent;
        }).config.system.activationScripts ? muster-secrets
      );
  }
  // t.inClan {
    "an accepted machine of a Clan decrypts with its own key" =
      inClan.nixosConfigurations.tin.config.sops.age.keyFile == "/var/lib/muster/age.txt"
      && inClan.darwinConfigurations.iron.config.sops.age.keyFile == "/var/lib/muster/age.txt";
    "one that is not accepted yet has everything as Clan has it" =
      let
        it = inClan.nixosConfigurations.old;
      in
      it.config.sops.age.keyFile == "/var/lib/sops-nix/key.txt"
      && (manifest it).files == [ ]
      && it.config.clan.core.vars.generators.token.files.early.path
        == "/var/lib/sops-nix/activation/per-machine/old/token/early";
    "a Clan's paths are where the agent decrypts to" =
      inClan.nixosConfigurations.tin.config.clan.core.vars.generators.token.files.early.path
      == "/run/muster/activation/per-machine/tin/token/early";
    "Macs of a Clan have their secrets before their daemons" =
      lib.hasInfix "sops-install-secrets" inClan.darwinConfigurations.iron.config.system.activationScripts.launchd.text;
    "a Clan declares its own secrets, and nobody twice" =
      lib.attrNames inClan.nixosConfigurations.tin.config.sops.secrets == [ "vars/per-machine/tin/token/key" ];
  };
  refuses."secrets without sops-nix" =
    (t.checked
      (t.nixos {
        modules = [
          (modules + "/secrets-nixos.nix")
          {
            networking.hostName = "tin";
            muster.vars.directory = ./source;
            muster.vars.generators = generators;
          }
        ];
      }).config
    ).networking.hostName;
}
