{ machines.tin = { }; }
