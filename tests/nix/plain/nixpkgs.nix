# As much of nixpkgs as flake.nix itself uses, so that it can be evaluated without nixpkgs. Nothing here can
# be built: a package is what it was made of.
{
  systems ? [
    "x86_64-linux"
    "aarch64-linux"
    "aarch64-darwin"
    "x86_64-darwin"
  ],
}:
let
  lib = rec {
    genAttrs =
      names: make:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = make name;
        }) names
      );
    optionalAttrs = condition: set: if condition then set else { };
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    mkDefault = value: value;
    licenses = {
      mit = "MIT";
      asl20 = "Apache-2.0";
    };
  };
  packagesFor =
    system:
    let
      pkgs = {
        stdenv.hostPlatform = {
          inherit system;
          isLinux = builtins.match ".*-linux" system != null;
          isDarwin = builtins.match ".*-darwin" system != null;
        };
        rustPlatform.buildRustPackage =
          made:
          made
          // {
            type = "derivation";
            name = "${made.pname}-${made.version}";
            outPath = "/nix/store/11111111111111111111111111111111-${made.pname}-${system}";
          };
        writeShellScript = name: text: "/nix/store/22222222222222222222222222222222-${name}";
        writeText = name: _: {
          type = "derivation";
          inherit name;
        };
        mkShell =
          shell:
          shell
          // {
            type = "derivation";
            name = "shell";
          };
      }
      // lib.genAttrs [
        "cargo"
        "clippy"
        "rustfmt"
        "cargo-deny"
        "jq"
        "libplist"
        "python3"
        "shellcheck"
      ] (name: name);
    in
    pkgs;
in
{
  inherit lib;
  outPath = "/nix/store/00000000000000000000000000000000-nixpkgs";
  legacyPackages = lib.genAttrs systems packagesFor;
}
