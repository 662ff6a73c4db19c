# A person's account on machines of both classes.
{ lib, ... }:
let
  userOf = { instanceName, settings, ... }: if settings.user == null then instanceName else settings.user;

  shellOf =
    { instanceName, settings, ... }:
    pkgs:
    if settings.shell == null || lib.hasPrefix "/" settings.shell then
      settings.shell
    else
      pkgs.${settings.shell} or (throw "instances.${instanceName}: nixpkgs has no shell ${settings.shell}.");

  # Both classes refuse a login shell that is not set up for the system.
  shellProgram =
    settings:
    lib.optionalAttrs (lib.elem settings.shell [ "fish" "zsh" ]) {
      programs.${settings.shell}.enable = lib.mkDefault true;
    };

  generators = pkgs: settings: user: {
    "user-password-${user}" = {
      inherit (settings) share;
      files.user-password.deploy = false;
      files.user-password-hash.neededFor = "users";
      prompts = lib.optionalAttrs settings.prompt {
        user-password = {
          type = "hidden";
          persist = true;
          description = "The password of ${user}; leave it empty to have one made";
        };
      };
      runtimeInputs = [
        pkgs.coreutils
        pkgs.mkpasswd
        pkgs.xkcdpass
      ];
      script = ''
        password=
        if [ -e "$prompts"/user-password ]; then
          password=$(cat "$prompts"/user-password)
        fi
        if [ -z "$password" ]; then
          password=$(xkcdpass --numwords 6 --delimiter - --count 1)
        fi
        printf %s "$password" > "$out"/user-password
        printf %s "$(mkpasswd --method=yescrypt --stdin < "$out"/user-password)" > "$out"/user-password-hash
      '';
    };
  };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/users";
    description = "Accounts on machines of both classes";
    categories = [ "System" ];
    readme = builtins.readFile ./README.md;
  };
  roles.default = {
    description = "Has the account.";
    interface.options = {
      user = lib.mkOption {
        type = lib.types.nullOr (lib.types.strMatching "[a-z_][a-z0-9_-]*");
        default = null;
        example = "alice";
        description = "The account's name; the instance's name, if null.";
      };
      description = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "Alice Liddell";
        description = "The person's name.";
      };
      uid = lib.mkOption {
        type = lib.types.nullOr (lib.types.ints.between 1 2147483647);
        default = null;
        example = 502;
        description = "The account's number. Macs want one; people's begin at 501.";
      };
      groups = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "wheel" ];
        description = "Further groups, on NixOS hosts.";
      };
      shell = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "fish";
        description = "The shell: a package of nixpkgs, or a path.";
      };
      home = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        description = "The home folder; /home/USER, on a Mac /Users/USER, if null.";
      };
      authorizedKeys = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        description = "Public keys that may log in as this user over SSH.";
      };
      password = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether the account has a password from the variables, on NixOS hosts. On Macs it never has.";
      };
      prompt = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether the operator is asked for the password; otherwise one is made.";
      };
      share = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether the password is the same on all machines.";
      };
    };
    perInstance = instance@{ instanceName, machine, settings, ... }: {
      nixosModule =
        { config, options, pkgs, ... }:
        let
          user = userOf instance;
          vars = import ../common/vars.nix {
            inherit lib config options;
            class = "nixos";
          };
        in
        {
          imports = [ ../../modules/vars.nix ];
          config = lib.mkMerge [
            (shellProgram settings)
            (lib.mkIf settings.password (vars.declare (generators pkgs settings user)))
            {
              users.users.${user} = {
                isNormalUser = true;
                extraGroups = settings.groups;
                openssh.authorizedKeys.keys = settings.authorizedKeys;
                description = lib.mkIf (settings.description != null) settings.description;
                uid = lib.mkIf (settings.uid != null) settings.uid;
                home = lib.mkIf (settings.home != null) settings.home;
                shell = lib.mkIf (settings.shell != null) (shellOf instance pkgs);
                hashedPasswordFile = lib.mkIf settings.password (
                  vars.file "user-password-${user}" "user-password-hash"
                ).path;
              };
            }
          ];
        };

      darwinModule =
        { config, pkgs, ... }:
        let
          user = userOf instance;
          # The Mac's owner already has an account, and deleting or changing it could lock them out.
          primary = config.system.primaryUser == user;
        in
        {
          config = lib.mkMerge [
            (shellProgram settings)
            { users.users.${user}.openssh.authorizedKeys.keys = settings.authorizedKeys; }
            # Once a user is declared, nix-darwin needs their home: without it, it cannot find the primary
            # user's.
            (lib.mkIf primary {
              users.users.${user}.home =
                if settings.home == null then lib.mkDefault "/Users/${user}" else settings.home;
            })
            (lib.mkIf (!primary) {
              users.knownUsers = [ user ];
              users.users.${user} = {
                inherit (settings) description;
                home = if settings.home == null then "/Users/${user}" else settings.home;
                createHome = true;
                isHidden = false;
                shell = if settings.shell == null then "/bin/zsh" else shellOf instance pkgs;
                uid =
                  if settings.uid == null then
                    throw "instances.${instanceName}: a Mac wants a number for ${user}. Set its settings.uid (${machine.name} may have 501 already: 502 or above)."
                  else
                    settings.uid;
              };
            })
          ];
        };
    };
  };
}
