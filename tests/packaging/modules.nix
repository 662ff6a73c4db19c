# The modules in packaging/, evaluated against a stand-in for nixpkgs' lib with the few functions that they use: no
# nixpkgs is needed, and a misspelt option or attribute is found. Prints what the tests compare.
let
  lib = {
    mkEnableOption = description: { inherit description; };
    mkOption = option: option;
    literalExpression = text: text;
    getExe' = package: name: "${package}/bin/${name}";
    escapeShellArg = text: text;
    mkIf = condition: value: if condition then value else { };
    optional = condition: value: if condition then [ value ] else [ ];
    types = {
      package = "package";
      path = "path";
      port = "port";
      bool = "bool";
      str = "str";
      attrs = "attrs";
      nullOr = type: type;
      listOf = type: type;
      submodule = options: options;
      ints.between = low: high: "int";
    };
  };
  pkgs = { };
  package = "/nix/store/11111111111111111111111111111111-muster";
  config = {
    nix.package = "/nix/store/22222222222222222222222222222222-nix";
    environment = shared.config.environment;
    services.muster-agent = {
      enable = true;
      inherit package;
      stateDir = "/var/lib/muster";
      pollSeconds = 55;
      buildSeconds = 86400;
      group = "wheel";
      proxy = "http://proxy.example:3128";
      noProxy = [ "localhost" ];
      policy = {
        window = {
          days = [ "sat" ];
          from = "22:00";
          to = "04:00";
        };
        minimum_battery = 50;
        before.drain.command = [
          "/bin/drain"
          "a \"b\""
        ];
      };
      checks.ssh.tcp = "127.0.0.1:22";
      log = "info";
      stablePath = darwin.options.services.muster-agent.stablePath.default;
    };
    services.muster-controller = {
      enable = true;
      inherit package;
      configFile = "/var/lib/muster-controller/controller.toml";
      openFirewall = 8443;
      lowPort = false;
    };
  };
  load = file: import file { inherit config lib pkgs; };
  shared = load ../../packaging/options.nix;
  nixos = load ../../packaging/systemd/agent.nix;
  controller = load ../../packaging/systemd/controller.nix;
  darwin = load ../../packaging/launchd/agent.nix;
  options = builtins.attrNames shared.options.services.muster-agent;
in
{
  inherit options;
  settings = shared.config.environment.etc."muster/agent.toml".text;
  agent = nixos.config.systemd.services.muster-agent;
  activator = nixos.config.systemd.services.muster-activator;
  controller = controller.config.systemd.services.muster-controller;
  firewall = controller.config.networking.firewall.allowedTCPPorts;
  daemon = darwin.config.launchd.daemons.muster-agent.serviceConfig;
  shares = map (module: module.imports) [
    nixos
    darwin
  ] == [
    [ ../../packaging/options.nix ]
    [ ../../packaging/options.nix ]
  ];
}
