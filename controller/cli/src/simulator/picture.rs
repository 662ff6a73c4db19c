//! The course as a picture: how many machines were where over the days, as stacked areas in SVG.

use std::fmt::Write as _;

use super::course::{Course, Seen, clock};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 46.0;
const DAY: i64 = 86_400;

type Part = (&'static str, &'static str, fn(&Seen) -> u32);

/// From the bottom: label, colour, number. The colours can be told apart by people who see no red or green.
const PARTS: [Part; 5] = [
    ("run it", "#0072b2", |seen| seen.runs),
    ("failed", "#d55e00", |seen| seen.failed),
    ("switching", "#f0e442", |seen| seen.switching),
    ("wait for their turn", "#56b4e9", |seen| seen.waiting),
    ("prepare", "#cccccc", |seen| seen.preparing),
];

/// The picture, a document of its own.
// Pixels need no more than 52 bits.
#[allow(clippy::cast_precision_loss)]
pub fn draw(course: &Course, title: &str) -> String {
    let end = course.seen.last().map_or(1, |seen| seen.after_seconds.max(1));
    let x = |at: i64| LEFT + WIDTH * at as f64 / end as f64;
    let y = |count: u32| TOP + HEIGHT - HEIGHT * f64::from(count) / (course.machines.max(1) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 470\" font-family=\"sans-serif\" \
         font-size=\"13\" role=\"img\">\n<title>{0}</title>\n<rect width=\"1000\" height=\"470\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{0}</text>\n",
        escaped(title)
    );
    let mut below = vec![0; course.seen.len()];
    for (label, colour, number) in PARTS {
        let above: Vec<u32> =
            course.seen.iter().zip(&below).map(|(seen, below)| below + number(seen)).collect();
        let mut points = String::new();
        for (seen, count) in course.seen.iter().zip(&above) {
            let _ = write!(points, "{:.1},{:.1} ", x(seen.after_seconds), y(*count));
        }
        for (seen, count) in course.seen.iter().zip(&below).rev() {
            let _ = write!(points, "{:.1},{:.1} ", x(seen.after_seconds), y(*count));
        }
        let points = points.trim_end();
        let _ =
            writeln!(svg, "<polygon points=\"{points}\" fill=\"{colour}\"><title>{label}</title></polygon>");
        below = above;
    }
    for day in 0..=end / DAY {
        let at = x(day * DAY);
        let bottom = TOP + HEIGHT;
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\" stroke=\"#555555\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">day {day}</text>",
            bottom + 5.0,
            bottom + 20.0
        );
    }
    for share in [0, 25, 50, 75, 100] {
        let at = TOP + HEIGHT - HEIGHT * f64::from(share) / 100.0;
        let (label, edge) = (LEFT - 8.0, LEFT - 3.0);
        let _ = writeln!(
            svg,
            "<text x=\"{label:.1}\" y=\"{:.1}\" text-anchor=\"end\">{share} %</text>\
             <line x1=\"{edge:.1}\" x2=\"{LEFT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#555555\"/>",
            at + 4.0
        );
    }
    if let Some(halted) = course.halted {
        let at = x(halted);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#000000\" stroke-width=\"2\" \
             stroke-dasharray=\"6 3\"/><text x=\"{:.1}\" y=\"{:.1}\">halted after {}</text>",
            TOP + HEIGHT,
            at + 6.0,
            TOP + 14.0,
            clock(halted)
        );
    }
    let mut from = LEFT;
    for (label, colour, _) in PARTS {
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"442\" width=\"14\" height=\"14\" fill=\"{colour}\" stroke=\"#555555\"/>\
             <text x=\"{:.1}\" y=\"454\">{label}</text>",
            from + 20.0
        );
        from += 40.0 + 7.5 * label.len() as f64;
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
