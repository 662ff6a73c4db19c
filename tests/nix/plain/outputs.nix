# The flake's outputs, from a nixpkgs that has packages for these systems.
{
  systems ? null,
}:
let
  self = (import ../../../flake.nix).outputs {
    inherit self;
    nixpkgs = import ./nixpkgs.nix (if systems == null then { } else { inherit systems; });
    sops-nix = { };
  };
in
self
