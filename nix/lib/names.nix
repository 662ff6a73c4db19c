# Which names, classes and systems there are. The same rules as in protocol/src/ids.rs and machine.rs, with
# which each recipient checks the names again.
let
  plain = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}";
in
rec {
  isName = text: builtins.isString text && builtins.match plain text != null;
  nameRule = "1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";

  classes = {
    nixos = {
      kernel = "linux";
      output = "nixosConfigurations";
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      module = "nixosModule";
      # The name for one of them in messages.
      noun = "a NixOS host";
    };
    darwin = {
      kernel = "darwin";
      output = "darwinConfigurations";
      systems = [
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      module = "darwinModule";
      noun = "a Mac";
    };
  };
  classNames = builtins.attrNames classes;
  isClass = text: builtins.isString text && classes ? ${text};
  otherClass = class: if class == "darwin" then "nixos" else "darwin";

  isSystem = text: builtins.isString text && builtins.match "[A-Za-z0-9_]+-(linux|darwin)" text != null;
  classOfSystem =
    system: if builtins.match ".*-darwin" system != null then "darwin" else "nixos";

  # The class of a machine by its own declaration; without one, Clan's default.
  classOf =
    machine:
    if isClass (machine.machineClass or null) then
      machine.machineClass
    else if isSystem (machine.system or null) then
      classOfSystem machine.system
    else
      "nixos";

  # Every machine has these automatically.
  ownTags = [
    "all"
    "nixos"
    "darwin"
  ];
}
