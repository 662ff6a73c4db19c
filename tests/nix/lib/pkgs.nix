# A stand-in for nixpkgs' package set: packages are names without contents, and what writes text has a path
# that depends on the text. Nothing here can be built; modules only put the paths into their settings.
{ lib, system }:
let
  path = name: text: "/nix/store/${builtins.substring 0 32 (builtins.hashString "sha256" text)}-${name}";
  package =
    name:
    lib.makeOverridable (
      _:
      let
        self = {
          type = "derivation";
          inherit name;
          pname = name;
          version = "0";
          inherit system;
          outPath = path name "package ${name}";
          drvPath = path "${name}.drv" "package ${name}";
          outputName = "out";
          outputs = [ "out" ];
          out = self;
          meta.mainProgram = name;
          overrideAttrs = _: self;
        };
      in
      self
    ) { };
  written = name: text: package name // { outPath = path name (builtins.unsafeDiscardStringContext text); inherit text; };
  script = name: text: written name text // { meta.mainProgram = name; };
in
lib.genAttrs [
  "bashInteractive"
  "borgbackup"
  "cacert"
  "cargo"
  "cargo-deny"
  "clippy"
  "libplist"
  "rustfmt"
  "shellcheck"
  "coreutils"
  "cowsay"
  "curl"
  "dnsmasq"
  "fish"
  "git"
  "gnupg"
  "gnugrep"
  "gnused"
  "htop"
  "jq"
  "mkpasswd"
  "muster"
  "muster-agent"
  "nix"
  "nix-bash-completions"
  "nix-info"
  "nix-zsh-completions"
  "openssh"
  "prometheus-node-exporter"
  "python3"
  "ripgrep"
  "rsync"
  "sops"
  "sops-install-secrets"
  "syncthing"
  "texinfoInteractive"
  "wireguard-go"
  "wireguard-tools"
  "xkcdpass"
  "dnsutils"
  "tcpdump"
  "gitMinimal"
  "zsh"
] package
// {
  inherit lib;
  # As in nixpkgs, the controller is included only on request.
  zerotierone = lib.makeOverridable (
    {
      enableUnfree ? false,
    }:
    package (if enableUnfree then "zerotierone-with-controller" else "zerotierone")
  ) { };
  stdenv = {
    hostPlatform = lib.systems.elaborate system;
    buildPlatform = lib.systems.elaborate system;
    shell = "/bin/sh";
  };
  hostPlatform = lib.systems.elaborate system;
  inherit system;
  runtimeShell = "${package "bash"}/bin/bash";
  nested.tool = package "nested-tool";
  writeText = written;
  writeTextFile = { name, text, ... }: written name text;
  writeScript = script;
  writeShellScript = script;
  writeScriptBin = script;
  writeShellScriptBin = script;
  writeShellApplication = { name, text, ... }: script name text;
  runCommand =
    name: _: text:
    written name text;
  buildEnv = { name, ... }: package name;
  symlinkJoin = { name, ... }: package name;
  mkShell = { packages, ... }: package "shell" // { inherit packages; };
  rustPlatform.buildRustPackage = attributes: package attributes.pname // attributes;
  formats = {
    json = _: {
      type = lib.types.attrsOf lib.types.anything;
      generate = name: value: written name (builtins.toJSON value);
    };
  };
  # Also where a file has several packages (nix-darwin's tools); one that writes a text stays as it is.
  callPackage =
    file: arguments:
    if baseNameOf (toString file) == "manifest-for.nix" then
      import file (lib.intersectAttrs (lib.functionArgs (import file)) { inherit lib; } // arguments)
    else
      package (baseNameOf (toString file))
      // lib.genAttrs [
        "darwin-option"
        "darwin-rebuild"
        "darwin-version"
        "sops-install-secrets"
      ] package;
  darwin-uninstaller = package "darwin-uninstaller";
}
