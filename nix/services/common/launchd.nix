# What all our daemons on a Mac have in common: they wait for /nix, which may not be mounted at boot, and
# carry a hash of their configuration, because nix-darwin reloads a daemon only when its plist changes.
{ lib }:
rec {
  fingerprint =
    configuration:
    builtins.hashString "sha256" (
      builtins.unsafeDiscardStringContext (builtins.toJSON configuration)
    );

  # `exec` as an argument would replace the shell before it has waited; the words follow it unchanged.
  arguments = name: program: [
    "/bin/sh"
    "-c"
    ''/bin/wait4path /nix/store && exec "$@"''
    name
  ] ++ map toString program;

  # The serviceConfig of a daemon that runs until it is stopped.
  daemon =
    {
      name,
      program,
      configuration,
      path ? [ ],
      log ? "/var/log/${name}.log",
    }:
    {
      ProgramArguments = arguments name program;
      EnvironmentVariables = {
        MUSTER_CONFIGURATION = fingerprint configuration;
        PATH = lib.concatStringsSep ":" (map (package: "${lib.getBin package}/bin") path ++ systemPath);
      };
      RunAtLoad = true;
      KeepAlive = true;
      ThrottleInterval = 10;
      ProcessType = "Background";
      StandardOutPath = log;
      StandardErrorPath = log;
    };

  systemPath = [
    "/usr/bin"
    "/bin"
    "/usr/sbin"
    "/sbin"
  ];
}
