# The modules that install the agent and the controller, as the flake exports them.
t:
let
  mac =
    settings:
    t.darwin {
      modules = [
        (t.repository + "/packaging/launchd/agent.nix")
        {
          services.muster-agent = {
            enable = true;
          }
          // settings;
        }
      ];
    };
  host =
    modules:
    t.nixos {
      modules = [
        (t.repository + "/packaging/systemd/agent.nix")
        (t.repository + "/packaging/systemd/controller.nix")
      ]
      ++ modules;
    };
  both = host [
    {
      services.muster-agent.enable = true;
      services.muster-controller = {
        enable = true;
        openFirewall = 8443;
      };
    }
  ];
  off = host [ ];
  plist = one: t.plist one "org.muster.agent";
in
{
  expect = {
    "mac.plist" = plist (mac { });
    "mac-agent.toml" = t.etc (mac { }) "muster/agent.toml";
    "agent.json" = t.unit both "muster-agent";
    "controller.json" = t.unit both "muster-controller";
    "controller-host.json" = {
      inherit (both.config.networking) firewall;
      user = both.config.users.users.muster-controller;
    };
  };
  holds = {
    "another setting changes the Mac's plist" = plist (mac { pollSeconds = 30; }) != plist (mac { });
    "nix-darwin's job takes the place of the one that the installer puts there" =
      (mac { }).config.environment.launchDaemons ? "org.muster.agent.plist";
    "a switch does not restart the agent" =
      !both.config.systemd.services.muster-agent.restartIfChanged
      && !both.config.systemd.services.muster-agent.stopIfChanged;
    "nothing is there that is not asked for" =
      off.config.systemd.services == { } && off.config.users.users == { };
    "both classes have the same settings" =
      let
        names = one: builtins.attrNames (removeAttrs one.options.services.muster-agent [ "stablePath" ]);
      in
      names (mac { }) == names both;
  };
  refuses = {
    "a poll that no controller would hold" = (mac { pollSeconds = 3600; }).config.environment.etc."muster/agent.toml".text;
  };
}
