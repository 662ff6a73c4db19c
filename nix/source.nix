# What cargo needs to build the workspace: its manifest, its lock, and every member that the manifest names.
root:
let
  inherit (builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"))) workspace;
  top = toString root + "/";
  files = [
    "Cargo.toml"
    "Cargo.lock"
    # How SQLite and mimalloc are compiled.
    ".cargo/config.toml"
    # What the controller serves.
    "docs/openapi.json"
  ];
  isBelow = folder: path: builtins.substring 0 (builtins.stringLength folder + 1) path == folder + "/";
  wanted =
    path: type:
    let
      name = builtins.substring (builtins.stringLength top) (-1) path;
    in
    builtins.elem name files
    || builtins.any (
      member: name == member || isBelow member name || (type == "directory" && isBelow name member)
    ) (workspace.members ++ files);
in
builtins.path {
  path = root;
  name = "muster-source";
  filter = wanted;
}
