mod back;
mod crashes;
mod forth;
mod world;
