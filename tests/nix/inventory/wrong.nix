# Every wrong inventory in wrong/ against its expected messages; without nixpkgs's lib, only those that do not
# need it.
{
  lib ? null,
}:
let
  inherit (builtins)
    attrNames
    concatMap
    length
    replaceStrings
    toJSON
    ;
  services = import ./services.nix;
  folder = ./.;
  said =
    case:
    let
      inspected = import ../../../nix/lib/inspect.nix (
        {
          services = {
            sshd = services.web;
            zerotier = services.web;
          };
          self.outPath = folder;
          inventory = case.inventory;
          inputs = {
            community.clan.modules = { inherit (services) web; };
            plain = { };
          };
          lib = if lib == null then throw "this case needs nixpkgs' lib" else lib;
          nix-darwin = { };
          modules = services;
          machines = { };
          machinesDir = folder + "/machines";
          exportInterfaces = { };
        }
        // case.arguments or { }
      );
      problems = if inspected.problems != [ ] then inspected.problems else inspected.serviceProblems;
    in
    map (replaceStrings [ (toString folder) ] [ "FOLDER" ]) (if case.pure then inspected.problems else problems);

  casesOf =
    pure: file:
    let
      cases = import file (import ./fleet.nix);
    in
    map (name: cases.${name} // { inherit name pure; }) (attrNames cases);
  cases =
    concatMap (casesOf true) [
      ./wrong/facts.nix
      ./wrong/files.nix
      ./wrong/instances.nix
      ./wrong/machines.nix
      ./wrong/rollouts.nix
      ./wrong/tags.nix
    ]
    ++ (if lib == null then [ ] else casesOf false ./wrong/services.nix);

  good = said {
    name = "the fleet that the cases are cut from";
    pure = true;
    inventory = (import ./fleet.nix).good;
  };
in
{
  # Whether each says what it should.
  cases = builtins.listToAttrs (
    map (case: {
      name = "wrong: ${case.name}";
      value = said case == case.says;
    }) cases
  );
  checked = length cases + 1;
  failures =
    (if good == [ ] then [ ] else [ "the right fleet: ${toJSON good}" ])
    ++ concatMap (
      case:
      let
        found = said case;
      in
      if found == case.says then
        [ ]
      else
        [ "${case.name}\n    wanted ${toJSON case.says}\n    found  ${toJSON found}" ]
    ) cases;
}
